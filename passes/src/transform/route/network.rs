//! `--scope network`: states of earlier chains that a chain's rows read too, brought to its shape without parameters.
//!
//! ```text
//! state [N, C, r·H, r·W] ── AveragePool r×r ──► [N, C, H, W] ── Pad with zeros or Slice of channels ──► [N, C', H, W]
//! ```
//!
//! A state is admitted when it is an ancestor of the chain's h_0, both are NCHW and the spatial ratio is an integer. The rank does
//! not tell NCHW from NHWC. A reader of the states does: an operator whose channel axis is fixed to 1, before any rearrangement.

use super::{RouteError, Source};
use crate::analysis::residual::Chain;
use crate::ir::{Attrs, DType, Dim, Graph, NodeId, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::ops::{Along, Class, Mixing, axes_of};
use std::collections::HashSet;

/// Number of left-out states that a note names.
const NAMED: usize = 3;

/// The states of the chains seen so far.
pub(super) struct Earlier {
    /// Execution order of the source's nodes, by index.
    places: Vec<usize>,
    /// Layout of every chain, by its place in the list of chains.
    nchw: Vec<bool>,
    states: Vec<State>,
}

struct State {
    place: usize,
    value: ValueId,
    nchw: bool,
}

/// What a chain may read besides its own states.
pub(super) struct Admitted {
    /// In execution order.
    pub(super) sources: Vec<Source>,
    /// The states that were left out, and why.
    pub(super) note: Option<String>,
}

impl Earlier {
    /// Reads the facts of the graph that must be known before routing changes it.
    pub(super) fn new(g: &Graph, chains: &[Chain]) -> Earlier {
        let mut places = vec![usize::MAX; g.node_bound()];
        for (place, node) in g.topological_order().into_iter().enumerate() {
            places[node.index()] = place;
        }
        Earlier { places, nchw: chains.iter().map(|c| is_nchw(g, c)).collect(), states: Vec::new() }
    }

    /// Adds a chain's block states: as the source has them, and as later chains must read them.
    pub(super) fn add(&mut self, chain: usize, source: &[ValueId], now: &[ValueId]) {
        for (old, new) in source.iter().zip(now) {
            if self.states.iter().any(|s| s.value == *new) {
                continue;
            }
            let place = self.places.get(old.node.index()).copied().unwrap_or(usize::MAX);
            self.states.push(State { place, value: *new, nchw: self.nchw[chain] });
        }
        self.states.sort_by_key(|s| s.place);
    }

    /// Admits earlier states to a chain, adding their adapters to the graph.
    pub(super) fn admit(&self, g: &mut Graph, chain: &Chain, place: usize, own: &[ValueId]) -> Result<Admitted, RouteError> {
        let ancestors = g.ancestors([own[0].node]);
        let ty = g.tensor_type(own[0]);
        let mut sources = Vec::new();
        let mut left_out = Vec::new();
        let mut candidates = 0;
        for s in self.states.iter().filter(|s| ancestors.contains(&s.value.node) && !own.contains(&s.value)) {
            candidates += 1;
            let fits = match (&ty, g.tensor_type(s.value)) {
                (Some(to), Some(from)) if s.nchw && self.nchw[place] => fit(&from, to),
                (Some(_), Some(_)) => Err(Misfit::Layout),
                _ => Err(Misfit::Untyped),
            };
            match fits {
                Ok(adapter) => {
                    let stem = format!("ancre/{}/source_{}", chain.id, sources.len());
                    let value = adapt(g, &stem, s.value, &adapter).map_err(|e| RouteError::Chain {
                        chain: chain.id,
                        what: e.to_string(),
                        hint: None,
                    })?;
                    sources.push(Source { state: s.value, value });
                }
                Err(why) => left_out.push(format!("`{}` {} ({why})", g.name(s.value), g.value(s.value).ty)),
            }
        }
        let note = (!left_out.is_empty()).then(|| {
            let more = left_out.len().saturating_sub(NAMED);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            let named = left_out[..left_out.len().min(NAMED)].join(", ");
            format!("{} of {candidates} earlier states cannot be brought to {}: {named}{more}", left_out.len(), chain.ty)
        });
        Ok(Admitted { sources, note })
    }
}

/// The axis that holds a chain's features, and how many there are: axis 1 of images with their channels first, else the last.
///
/// # Errors
/// Why it cannot be told.
pub(super) fn features(g: &Graph, chain: &Chain) -> Result<(usize, usize), String> {
    let refused = |what: &str| Err(format!("attention needs {what}, and its state is {}", chain.ty));
    let Some(ty) = g.tensor_type(chain.states[0]) else { return refused("the state's type") };
    let axis = match ty.rank() {
        0 | 1 => return refused("states with features"),
        4 if is_nchw(g, chain) => 1,
        rank => rank - 1,
    };
    match ty.shape[axis].known() {
        Some(n) if n > 0 => Ok((axis, n as usize)),
        _ => refused("a known number of features"),
    }
}

/// Does a node take axis 1 of an image for its channels, as convolutions, pooling and normalisation per channel do?
fn is_channels_first(g: &Graph, node: NodeId) -> bool {
    let class = g.op(node).map(Class::of);
    let Some(Class::Mixing(Mixing::Conv | Mixing::Pool) | Class::Norm) = class else { return false };
    axes_of(g, node).is_some_and(|axes| {
        let image = axes.operand(0);
        let slides = image.iter().skip(2).any(|l| axes.along(*l) == Along::Window);
        image.len() == 4 && (slides || axes.in_operand(1, image[1]).is_some())
    })
}

/// Does an operator hand on its operand, or scale or squash it, whatever the order of the axes?
fn keeps_axes(g: &Graph, node: NodeId) -> bool {
    g.op(node).is_some_and(|op| matches!(Class::of(op), Class::Carry | Class::Activation | Class::Scale))
}

/// Does a convolution give a branch's result that is added to a chain's state without being rearranged?
fn adds_convolutions(g: &Graph, chain: &Chain) -> bool {
    let mut seen: HashSet<ValueId> = chain.states.iter().skip(1).copied().collect();
    let mut open: Vec<(ValueId, usize)> = seen.iter().map(|v| (*v, 0)).collect();
    while let Some((v, depth)) = open.pop() {
        match g.op(v.node).map(Class::of) {
            Some(Class::Mixing(Mixing::Conv)) if is_channels_first(g, v.node) => return true,
            Some(class) if depth < 4 && (class == Class::Add || keeps_axes(g, v.node)) => {
                open.extend(g.reads(v.node).filter(|r| seen.insert(*r)).map(|r| (r, depth + 1)));
            }
            _ => {}
        }
    }
    false
}

/// Are a chain's states read, before any rearrangement, by an operator whose channel axis is fixed to 1, or made by one?
fn is_nchw(g: &Graph, chain: &Chain) -> bool {
    let rank4 = |v: &ValueId| g.value(*v).ty.shape.as_ref().is_some_and(|s| s.len() == 4);
    let mut open: Vec<ValueId> = chain.states.iter().copied().filter(rank4).collect();
    if open.len() != chain.states.len() {
        return false;
    }
    if adds_convolutions(g, chain) {
        return true;
    }
    let mut seen: HashSet<ValueId> = open.iter().copied().collect();
    while let Some(v) = open.pop() {
        for (node, _) in g.uses_in_order(v).into_iter().filter(|(_, operand)| *operand == 0) {
            if is_channels_first(g, node) {
                return true;
            }
            if keeps_axes(g, node) {
                open.extend(g.results(node).take(1).filter(|r| seen.insert(*r)));
            }
        }
    }
    false
}

/// How a state is brought to a chain's shape.
struct Adapter {
    /// Extents of the pooling window, which is its stride too.
    ratio: [i64; 2],
    /// Channels of the state and of the chain.
    channels: [i64; 2],
    dtype: DType,
}

/// Why a state cannot be brought to a chain's shape.
#[derive(Debug, thiserror::Error)]
enum Misfit {
    #[error("its type is not known")]
    Untyped,
    #[error("channels first is not evident: no convolution reads or makes the state directly")]
    Layout,
    #[error("only states of rank 4 have channels and spatial axes")]
    Rank,
    #[error("the chain's element type is {0}")]
    Type(DType),
    #[error("its batch is another")]
    Batch,
    #[error("its number of channels is not known")]
    Channels,
    #[error("the spatial ratio {0} to {1} is no integer")]
    Fraction(i64, i64),
    #[error("the spatial ratio {0} to {1} is not known")]
    Unknown(Dim, Dim),
}

fn fit(from: &TensorType, to: &TensorType) -> Result<Adapter, Misfit> {
    if from.rank() != 4 || to.rank() != 4 {
        return Err(Misfit::Rank);
    }
    if from.dtype != to.dtype {
        return Err(Misfit::Type(to.dtype));
    }
    if from.shape[0] != to.shape[0] {
        return Err(Misfit::Batch);
    }
    let ratio = |axis: usize| -> Result<i64, Misfit> {
        let (a, b): (&Dim, &Dim) = (&from.shape[axis], &to.shape[axis]);
        match (a.known(), b.known()) {
            (Some(a), Some(b)) if b > 0 && a % b == 0 && a >= b => Ok(a / b),
            (Some(a), Some(b)) => Err(Misfit::Fraction(a, b)),
            _ if a == b => Ok(1),
            _ => Err(Misfit::Unknown(a.clone(), b.clone())),
        }
    };
    let channels = |ty: &TensorType| ty.shape[1].known().ok_or(Misfit::Channels);
    Ok(Adapter { ratio: [ratio(2)?, ratio(3)?], channels: [channels(from)?, channels(to)?], dtype: from.dtype })
}

/// Emits an adapter. A state that already fits is read as it is.
fn adapt(g: &mut Graph, stem: &str, state: ValueId, a: &Adapter) -> Result<ValueId, BuildError> {
    let mut b = Builder::new(g, stem);
    let [from, to] = a.channels;
    // ONNX has no pooling of bfloat16 before opset 22, and ONNX Runtime's CUDA provider has no padding of it.
    let wide = a.dtype == DType::BF16 && (a.ratio != [1, 1] || from < to);
    let mut v = if wide { b.cast(state, DType::F32)? } else { state };
    if from > to {
        v = b.slice(v, 1, 0, to)?;
    }
    if a.ratio != [1, 1] {
        let window = Attrs::new().with("kernel_shape", a.ratio.to_vec()).with("strides", a.ratio.to_vec());
        v = b.op_with("AveragePool", window, &[v])?;
    }
    if from < to {
        v = pad_channels(&mut b, v, to - from)?;
    }
    if wide {
        v = b.cast(v, a.dtype)?;
    }
    if v != state {
        b.graph.rename(v, stem);
        b.graph.node_mut(v.node).name = stem.to_string();
    }
    Ok(v)
}

/// Zeros after the channels of an NCHW value.
fn pad_channels(b: &mut Builder, v: ValueId, count: i64) -> Built {
    let amounts = vec![0, 0, 0, 0, 0, count, 0, 0];
    // The amounts became an operand in opset 11.
    if b.opset() < 11 {
        return b.op_with("Pad", Attrs::new().with("pads", amounts), &[v]);
    }
    let amounts = b.ints(&amounts);
    b.op("Pad", &[v, amounts])
}

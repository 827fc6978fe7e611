//! Rebuilds a graph for another batch: a file exported with batch 1 (or 8) baked into its shapes becomes one for any batch, or for
//! a batch of N.
//!
//! Nothing here looks for patterns of models. Every value that depends on the samples has a `Place`: the axis that counts them,
//! and what that axis counts beside them (`B·64` windows, `197·B` tokens). The places of the inputs are known. Each operator's rule
//! (`rules`) says where the samples go, and refuses where the operator would mix them (a softmax over them, a contraction, a
//! squeeze). By induction, sample `b` of every value is what the source computes for that sample alone. What a rule wants changed
//! in the graph is an `Edit`: a shape that names the old extent, a constant that must be repeated, an index that names the one
//! sample there was.
//!
//! A `Reshape` leaves open which of several axes counts the samples (`[1, 1, 32]`, or `[197, 768]` after `[197, 1, 768]`). The
//! memory is the same whichever is taken; only the readers of the value tell. So these are choices, and a refusal further down goes
//! back to the latest choice that has another answer (`search`). Where no choice has, samples are brought to another axis: the
//! source's batch is 1, so any axis can count them.
//!
//! ```text
//!   before  x [1,3,224,224] … t [1,196,768] = Reshape(c, [1,196,768])   y = Concat(cls [1,1,768], t)
//!   after   x [B,3,224,224] … t [B,196,768] = Reshape(c, [-1,196,768])  y = Concat(Expand(cls, [B,1,1]), t)
//! ```

mod edit;
mod integers;
mod place;
mod rules;
mod search;

use crate::ir::{Dim, Graph, Kind, NodeId, Op, TensorType, ValueId};
use crate::ops::build::BuildError;
use crate::ops::reads_element_type;
use crate::refusal::{Refusal, Why};
use edit::Edit;
use integers::Integers;
use place::Place;
use rules::bring::Effort;
use std::collections::{HashMap, HashSet};

/// The batch a graph is rebuilt for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Any batch.
    Dynamic,
    /// One number of samples.
    Fixed(i64),
}

/// The batch a graph has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// A number.
    Fixed(i64),
    /// A symbol of the inputs' shapes.
    Dynamic(Dim),
}

/// Where the samples of a value are: `outer · B · inner` elements along an axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    /// Name of the value.
    pub name: String,
    /// The axis.
    pub axis: usize,
    /// Number of times that all samples come, one after the other.
    pub outer: i64,
}

/// How a graph was rebuilt.
#[derive(Clone, Debug)]
pub struct Rebatched {
    /// The batch it had.
    pub before: i64,
    /// The batch it has.
    pub batch: Dim,
    /// Inputs that carry samples.
    pub inputs: Vec<Samples>,
    /// Outputs that carry samples.
    pub outputs: Vec<Samples>,
    /// Number of operands that were rewritten.
    pub edits: usize,
}

/// Why a graph cannot be rebuilt for another batch.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum RebatchError {
    #[error("no input has a first axis that could count samples")]
    NoSamples,
    #[error("its batch is {0}")]
    Empty(i64),
    #[error("{0}")]
    Node(Refusal),
    #[error("output `{0}` does not depend on the samples of the inputs")]
    Output(String),
    #[error("the model has no output")]
    NoOutput,
    #[error("`{0}` would hold the samples {1} times over, and that number is only known when the graph runs")]
    Interleaved(String, Dim),
}

/// The batch of a graph: the extent of the first axis of the first input that has two axes or more, else of the first input.
///
/// # Errors
/// When no input has an axis.
pub fn current(g: &Graph) -> Result<Current, RebatchError> {
    let shapes: Vec<Vec<Dim>> = g.required_inputs().filter_map(|v| Some(g.tensor_type(v)?.shape)).collect();
    let shape = shapes.iter().find(|s| s.len() >= 2).or_else(|| shapes.iter().find(|s| !s.is_empty()));
    let first = shape.and_then(|s| s.first()).ok_or(RebatchError::NoSamples)?;
    Ok(match first.known() {
        Some(n) => Current::Fixed(n),
        None => Current::Dynamic(first.clone()),
    })
}

/// The batch's symbol, and a `Reshape` that is possible only where it is 1: an exporter declared the batch to be free and wrote the
/// shapes of one sample.
pub fn baked(g: &Graph) -> Option<(Dim, NodeId)> {
    let Ok(Current::Dynamic(symbol)) = current(g) else { return None };
    let elements = |v: ValueId| g.tensor_type(v).map(|ty| ty.elements());
    let only_one = |id: &NodeId| {
        let (from, to) = (g.operand(*id, 0).and_then(elements)?, elements(g.result(*id, 0))?);
        (g.is_op(*id, "Reshape") && to.known() != Some(0) && from == &symbol * &to).then_some(())
    };
    let node = g.nodes().find(|id| g.op(*id).is_some() && only_one(id).is_some())?;
    Some((symbol, node))
}

/// The batch that a graph can be rebuilt for: any batch, if its own is a number and nothing stands in the way.
pub fn possible(g: &Graph) -> Option<Batch> {
    match current(g) {
        Ok(Current::Fixed(before)) => plan(g, before).ok().map(|_| Batch::Dynamic),
        _ => None,
    }
}

/// What has to change in a graph for another batch. It holds for the graph it was made for, and for clones of that.
pub struct Plan {
    /// The batch's symbol while planning.
    symbol: String,
    before: i64,
    places: HashMap<ValueId, Place>,
    edits: Vec<(NodeId, Edit)>,
}

/// Plans the change of a graph whose batch is the number `before`.
///
/// # Errors
/// The node that stands in the way, and why.
pub fn plan(g: &Graph, before: i64) -> Result<Plan, RebatchError> {
    if before < 1 {
        return Err(RebatchError::Empty(before));
    }
    let symbol = free_symbol(g);
    let mut a = Analysis::new(g, before, Dim::symbol(&symbol));
    let edits = search::search(&mut a)?;
    Ok(Plan { symbol, before, places: a.places, edits })
}

/// A name for the batch that no extent of the graph has.
fn free_symbol(g: &Graph) -> String {
    let values = g.nodes().flat_map(|n| g.results(n));
    let shapes = values.filter_map(|v| g.value(v).ty.shape.as_ref());
    let used: HashSet<&str> = shapes.flatten().flat_map(Dim::symbols).collect();
    let names = ["batch".to_string(), "batch_size".into()].into_iter().chain((1..).map(|i| format!("batch_{i}")));
    names.into_iter().find(|n| !used.contains(n.as_str())).unwrap_or_default()
}

/// What is known while the nodes are walked.
struct Analysis<'g> {
    g: &'g Graph,
    /// The batch the graph has.
    before: i64,
    /// The batch it will have.
    batch: Dim,
    places: HashMap<ValueId, Place>,
    integers: HashMap<ValueId, Integers>,
    edits: HashMap<NodeId, Vec<Edit>>,
    /// How far a node's rule may go, if it may do more than take its operands as they are.
    efforts: HashMap<NodeId, Effort>,
    /// Are integers taken for what they were in the source, where it cannot be told how they depend on the batch?
    as_was: bool,
}

impl<'g> Analysis<'g> {
    fn new(g: &'g Graph, before: i64, batch: Dim) -> Analysis<'g> {
        let (places, integers, edits, efforts) = Default::default();
        Analysis { g, before, batch, places, integers, edits, efforts, as_was: false }
    }

    /// Derives what holds of a node's results. Takes answer number `answer` of several; returns how many there are.
    fn step(&mut self, id: NodeId, answer: usize) -> Result<usize, RebatchError> {
        self.edits.remove(&id);
        for v in self.g.results(id) {
            self.places.remove(&v);
            self.integers.remove(&v);
        }
        match &self.g.node(id).kind {
            Kind::Input(_) => Ok(self.input(self.g.result(id, 0), answer)),
            Kind::Op(op) if !op.is("Constant") => {
                self.operator(id, op, answer).map_err(|why| RebatchError::Node(why.at(self.g.site(id))))
            }
            Kind::Initializer { .. } | Kind::Op(_) => {
                let v = self.g.result(id, 0);
                self.integers.extend(integers::of_constant(self.g, v).map(|i| (v, Some(i))));
                Ok(1)
            }
        }
    }

    /// An input's first axis counts samples if it has the batch's extent, else its second axis may, or all samples share the input.
    fn input(&mut self, v: ValueId, answer: usize) -> usize {
        let shape = self.g.value(v).ty.shape.clone().unwrap_or_default();
        let axes: Vec<usize> =
            shape.iter().enumerate().take(2).filter(|(_, d)| d.known() == Some(self.before)).map(|(i, _)| i).collect();
        if let Some(axis) = axes.get(answer) {
            self.places.insert(v, Place::pure(*axis));
        }
        axes.len() + 1
    }

    fn operator(&mut self, id: NodeId, op: &'g Op, answer: usize) -> Result<usize, Why> {
        let operands =
            self.g.operands(id).iter().enumerate().filter(|(i, _)| !reads_element_type(op, *i)).filter_map(|(_, v)| *v);
        let reads: Vec<ValueId> = operands.chain(self.g.captures(id)).collect();
        let placed = reads.iter().any(|v| self.places.contains_key(v));
        let counts = reads.iter().any(|v| self.integers.get(v).is_some_and(|i| integers::depends(i, &self.batch)));
        if !placed && !counts {
            // The results are the same for every sample, whatever the batch.
            if let Some(i) = integers::evaluate(self.g, id, self) {
                self.integers.insert(self.g.result(id, 0), Some(i));
            }
            return Ok(1);
        }
        if self.g.captures(id).any(|v| self.places.contains_key(&v)) {
            return Err("its subgraph reads values of the samples".into());
        }
        let mut visit = rules::Visit::new(self, id, op, answer);
        let found = visit.apply()?;
        let (edits, answers) = (visit.edits, visit.answers);
        if !edits.is_empty() {
            self.edits.insert(id, edits);
        }
        match found {
            rules::Found::Places(places) => {
                for (v, p) in self.g.results(id).zip(places) {
                    let Some(p) = p else { continue };
                    match self.check(v, &p) {
                        Ok(()) => drop(self.places.insert(v, p)),
                        Err(_) if self.g.name(v).is_empty() || !self.g.is_needed(v) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
            // A sequence has no shape to compare the place with.
            rules::Found::Sequence(p) => drop(self.places.insert(self.g.result(id, 0), p)),
            rules::Found::Integers(i) => drop(self.integers.insert(self.g.result(id, 0), i)),
            rules::Found::Same => {}
        }
        Ok(answers)
    }

    /// The extent of the place's axis must be what the source has there.
    fn check(&self, v: ValueId, p: &Place) -> Result<(), Why> {
        let (name, ty) = (self.g.name(v), &self.g.value(v).ty);
        let d = ty.shape.as_ref().and_then(|s| s.get(p.axis));
        let d = d.ok_or_else(|| format!("`{name}` has type {ty}, and its samples would lie along axis {}", p.axis))?;
        let want = p.extent(&Dim::from(self.before));
        if *d == want || crate::analysis::types::is_unnamed(d) {
            return Ok(());
        }
        Err(format!("`{name}` has extent {d} along axis {}, where {want} was expected", p.axis).into())
    }

    fn check_outputs(&self) -> Result<(), RebatchError> {
        let outputs = self.g.outputs();
        let interleaved = |v: ValueId| Some((v, self.places.get(&v).filter(|p| p.outer.known().is_none())?));
        if let Some((v, p)) = outputs.iter().map(|o| o.value).chain(self.g.required_inputs()).find_map(interleaved) {
            return Err(RebatchError::Interleaved(self.g.name(v).to_string(), p.outer.clone()));
        }
        if outputs.iter().any(|o| self.places.contains_key(&o.value)) {
            return Ok(());
        }
        let first = outputs.first().ok_or(RebatchError::NoOutput)?;
        Err(RebatchError::Output(self.g.name(first.value).to_string()))
    }

    /// The shape of a value in the source.
    fn shape(&self, v: ValueId) -> Result<Vec<Dim>, Why> {
        let known = self.g.value(v).ty.shape.clone();
        known.ok_or_else(|| format!("the shape of `{}` is unknown", self.g.name(v)).into())
    }

    /// The shape of a value for the new batch.
    fn new_shape(&self, v: ValueId) -> Result<Vec<Dim>, Why> {
        let mut shape = self.shape(v)?;
        if let Some(p) = self.places.get(&v)
            && let Some(d) = shape.get_mut(p.axis)
        {
            *d = p.extent(&self.batch);
        }
        Ok(shape)
    }
}

impl Plan {
    /// Those of the values that carry samples.
    fn samples(&self, g: &Graph, values: impl Iterator<Item = ValueId>) -> Vec<Samples> {
        let one = |v: ValueId| {
            let p = self.places.get(&v)?;
            Some(Samples { name: g.name(v).to_string(), axis: p.axis, outer: p.outer.known()? })
        };
        values.filter_map(one).collect()
    }

    /// Rebuilds the graph.
    ///
    /// # Errors
    /// When a node cannot be built: a fault of this tool.
    pub fn apply(&self, g: &mut Graph, to: Batch) -> Result<Rebatched, BuildError> {
        let batch = match to {
            Batch::Dynamic => Dim::symbol(&self.symbol),
            Batch::Fixed(n) => Dim::from(n),
        };
        let inputs: Vec<ValueId> = g.required_inputs().collect();
        let done = Rebatched {
            before: self.before,
            batch: batch.clone(),
            inputs: self.samples(g, inputs.iter().copied()),
            outputs: self.samples(g, g.outputs().iter().map(|o| o.value)),
            edits: self.edits.len(),
        };
        for (v, p) in &self.places {
            let mut ty = g.value(*v).ty.clone();
            if let Some(d) = ty.shape.as_mut().and_then(|s| s.get_mut(p.axis)) {
                *d = p.extent(&batch);
            }
            g.set_type(*v, ty);
        }
        g.forget_declarations(&self.places.keys().copied().collect());
        // Samples come from inputs: a plan has at least one.
        if let Some(first) = inputs.iter().find_map(|v| self.places.get(v).map(|p| (*v, p.axis))) {
            edit::apply(g, &self.edits, first, &batch, self.before)?;
        }
        Ok(done)
    }
}

/// Puts a number in the place of the symbol that is a graph's batch, in all shapes.
pub fn fix(g: &mut Graph, symbol: &Dim, n: i64) {
    let names: Vec<String> = symbol.symbols().map(str::to_string).collect();
    let [name] = names.as_slice() else { return };
    let values: Vec<ValueId> = g.nodes().flat_map(|id| g.results(id).collect::<Vec<_>>()).collect();
    let mut changed = HashSet::new();
    for v in values {
        let Some(ty) = g.tensor_type(v).filter(|t| t.shape.iter().any(|d| d.symbols().any(|s| s == name))) else { continue };
        let shape: Vec<Dim> = ty.shape.iter().map(|d| d.substitute(name, &Dim::from(n))).collect();
        g.set_type(v, TensorType::new(ty.dtype, shape).into());
        changed.insert(v);
    }
    g.forget_declarations(&changed);
}

#[cfg(test)]
mod tests;

//! Convolutions in the layout that ONNX Runtime's CPU provider likes best: channels in blocks as long as the machine's vectors,
//! [N, C / B, H, W, B]. Its optimiser chooses that layout where weights are constants. The weights of a training graph are not.
//!
//! The operators of `com.microsoft.nchwc` are in every build for x86-64. What is built here holds for every length B of a block (8
//! without AVX-512, 16 with it): `ReorderInput` makes all layouts, those of weights too, and channels are multiples of
//! [`CHANNELS`]. A value in blocks has the type of the image, whose elements stand in another order.

use super::conv::reshape_around;
use super::window::Window;
use super::*;
use std::collections::HashMap;

/// Operator set of the operators on blocks.
pub(crate) const NCHWC: &str = "com.microsoft.nchwc";

/// Channels are multiples of this, the longest block.
const CHANNELS: i64 = 16;
/// So few channels, fewer than the shortest block has, are read as they are.
const FEW: i64 = 7;

/// How a convolution reads its image and weight.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Layout {
    /// Both in blocks of input and output channels.
    Dense,
    /// The image as it is, the weight in blocks of output channels.
    Few,
    /// Channel by channel: the image in blocks, the weight in blocks of output channels.
    Single,
}

/// What is in blocks already.
#[derive(Default)]
pub(crate) struct Blocks {
    images: HashMap<ValueId, ValueId>,
    weights: HashMap<(ValueId, Layout), ValueId>,
}

impl Blocks {
    /// Lets a convolution of a float32 image with one or two spatial axes compute in blocks, if its channels allow that and it is
    /// faster; returns whether it does. The node stays, as what brings the result back into its order.
    ///
    /// # Errors
    /// When a node cannot be built.
    pub(crate) fn convolve(&mut self, b: &mut Builder, node: NodeId) -> Result<bool, BuildError> {
        let Some(Suited { window, group, layout, channels }) = suited(b, node) else { return Ok(false) };
        let [Some(x), Some(w), ref bias @ ..] = b.graph.operands(node)[..] else { return Ok(false) };
        let bias = bias.first().copied().flatten();
        let ty = b.ty(b.graph.result(node, 0))?;
        let flat = window.rank() == 1;
        let window = if flat { window.on_a_row() } else { window };
        let image = match self.images.get(&x) {
            _ if layout == Layout::Few => as_image(b, x, flat)?,
            Some(v) => *v,
            None => {
                let wide = as_image(b, x, flat)?;
                let image = reorder(b, wide)?;
                self.images.insert(x, image);
                image
            }
        };
        let weight = match self.weights.get(&(w, layout)) {
            Some(v) => *v,
            None => {
                let wide = as_image(b, w, flat)?;
                let weight = if layout == Layout::Dense { dense_weight(b, wide)? } else { output_blocks(b, wide)? };
                self.weights.insert((w, layout), weight);
                weight
            }
        };
        let mut wide = ty.clone();
        if flat {
            wide.shape.insert(2, Dim::from(1));
        }
        let op = own_op(b, "Conv", window.attrs(group));
        let operands: Vec<_> = [Some(image), Some(weight)].into_iter().chain(bias.map(Some)).collect();
        let blocks = b.node_of(op, &operands, vec![wide])[0];
        let back = restore_op(b, channels);
        if flat {
            let plain = b.node(back, &[Some(blocks)])?[0];
            let axis = b.ints(&[2]);
            b.graph.replace_op(node, Op::new("Squeeze", Attrs::new()), &[Some(plain), Some(axis)]);
        } else {
            b.graph.replace_op(node, back, &[Some(blocks)]);
        }
        Ok(true)
    }
}

/// A convolution that may compute in blocks.
struct Suited {
    window: Window,
    group: i64,
    layout: Layout,
    /// Channels of its result.
    channels: i64,
}

fn suited(b: &Builder, node: NodeId) -> Option<Suited> {
    let op = b.graph.op(node).filter(|op| op.is("Conv"))?;
    let [Some(x), Some(w), ..] = b.graph.operands(node)[..] else { return None };
    let (x, w, y) = (b.ty(x).ok()?, b.ty(w).ok()?, b.ty(b.graph.result(node, 0)).ok()?);
    if w.rank() != x.rank() || y.rank() != x.rank() {
        return None;
    }
    let window = Window::new(op, w.shape.get(2..), x.shape.get(2..)?).and_then(Window::padded).ok()?;
    let group = op.int("group");
    let layout = layout(b, &x, &w, &y, &window, group)?;
    // `Squeeze` takes its axes as an operand from opset 13 on.
    let squeezes = window.rank() == 2 || b.opset() >= 13;
    let channels = w.shape[0].known().filter(|_| squeezes)?;
    Some(Suited { window, group, layout, channels })
}

fn layout(b: &Builder, x: &TensorType, w: &TensorType, y: &TensorType, window: &Window, group: i64) -> Option<Layout> {
    let dims = w.known_dims()?;
    let (outputs, inputs) = (dims[0], dims[1].checked_mul(group)?);
    let float = x.dtype == DType::F32 && w.dtype == DType::F32;
    let padded = window.begin.iter().chain(&window.end).all(|p| *p >= 0);
    // A convolution of single cells is a product, for which blocks gain less than laying them out takes.
    if !float || !padded || !matches!(window.rank(), 1 | 2) || window.taps() == 1 || outputs % CHANNELS != 0 {
        return None;
    }
    if is_single(&dims, group) {
        return Some(Layout::Single);
    }
    match group {
        1 if !is_light(b, w, x, y) => None,
        1 if inputs <= FEW => Some(Layout::Few),
        1 if inputs % CHANNELS == 0 => Some(Layout::Dense),
        _ => None,
    }
}

/// One channel in and one out for each group?
fn is_single(weight: &[i64], group: i64) -> bool {
    group > 1 && weight[1] == 1 && weight[0] == group
}

/// Does it take little time to lay the weight out, beside the convolution?
fn is_light(b: &Builder, w: &TensorType, x: &TensorType, y: &TensorType) -> bool {
    let batch = b.batch(&x.shape[0]);
    let cells = |ty: &TensorType| product(&ty.shape[1..]).known();
    match (w.elements().known(), cells(x), cells(y)) {
        (Some(w), Some(x), Some(y)) => {
            w <= b.target.blocked_weight.saturating_mul(batch).saturating_mul(x.saturating_add(y))
        }
        _ => true,
    }
}

/// Does the target have blocks, and do these channels fill them?
pub(super) fn fill(b: &Builder, channels: &Dim, dtype: DType) -> bool {
    b.target.blocked_weight > 0 && dtype == DType::F32 && channels.known().is_some_and(|c| c % CHANNELS == 0)
}

/// [A, B, L] as [A, B, 1, L].
fn as_image(b: &mut Builder, v: ValueId, flat: bool) -> Built {
    if flat { b.unsqueeze(v, &[2]) } else { Ok(v) }
}

/// [N, C, H, W] in blocks of channels.
pub(super) fn reorder(b: &mut Builder, v: ValueId) -> Built {
    let op = own_op(b, "ReorderInput", Attrs::new());
    Ok(b.node(op, &[Some(v)])?[0])
}

/// What brings an image of so many channels back into its order.
pub(super) fn restore_op(b: &mut Builder, channels: i64) -> Op {
    own_op(b, "ReorderOutput", Attrs::new().with("channels", channels))
}

/// An operator of the runtime's own set, which the graph imports from now on.
pub(super) fn own_op(b: &mut Builder, name: &str, attrs: Attrs) -> Op {
    b.graph.opsets.entry(NCHWC.into()).or_insert(1);
    Op::in_domain(NCHWC, name, attrs)
}

/// A weight [O, C, H, W] as [O / B, C, H, W, B].
pub(super) fn output_blocks(b: &mut Builder, w: ValueId) -> Built {
    let ty = b.ty(w)?;
    let rest = product(&ty.shape[1..]);
    let one = Dim::from(1);
    let flat = reshape_around(b, w, &[one.clone(), ty.shape[0].clone(), rest, one])?;
    let blocks = reorder(b, flat)?;
    reshape_around(b, blocks, &ty.shape)
}

/// A weight [O, C, H, W] as [O / B, C / B, H, W, B of C, B of O].
fn dense_weight(b: &mut Builder, w: ValueId) -> Built {
    let inputs = reorder(b, w)?;
    output_blocks(b, inputs)
}

//! Makes a quantised model one that trains: weights stored as integers become float32, and what quantises and dequantises again becomes
//! one operator, `ancre.FakeQuantize`, which has a pullback.
//!
//! ```text
//!   before          y = DequantizeLinear(w: int8, s, z)
//!   float_weights   y = DequantizeLinear(ancre.Quantize(w: float32, s, z), s, z)
//!   pair_quantisers y = ancre.FakeQuantize(w: float32, s, z)
//! ```
//!
//! The scale of a bias is the product of two others. Where scales train it is computed.

use crate::analysis::roles::UseRoles;
use crate::analysis::stored::{IntegerProduct, Stored, integer_product, scaled_by_hand, stored_weights};
use crate::ir::{ANCRE, Attrs, DType, Dim, Graph, NodeId, Op, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::ops::{TypeError, integer_range};
use crate::refusal::{Applied, Why};
use std::collections::{HashMap, HashSet};

/// Makes float32 tensors, under the same names, of the trained weights that are stored as integers, quantised where they are read. With
/// `scales` the scale of a bias is computed. Returns the names.
///
/// # Errors
/// When a constant cannot be read, or a node cannot be built.
pub fn float_weights(g: &mut Graph, scales: bool) -> Result<Vec<String>, BuildError> {
    let trained = trained_weights(g);
    let products = products(g);
    let by_hand = trained.iter().filter_map(|w| scaled_by_hand(g, w.reader.0)).map(|(scaled, _)| scaled).collect();
    for w in &trained {
        if w.packed {
            unpack(g, w)?;
        } else {
            quantise(g, w, scales)?;
        }
    }
    write_out_all(g, &products)?;
    sweep(g, by_hand);
    Ok(trained.into_iter().map(|w| g.name(w.value).to_string()).collect())
}

/// Writes products of integers out as products of the floats that they stand for; returns how many.
///
/// # Errors
/// When a node cannot be built.
pub fn write_products_out(g: &mut Graph) -> Result<usize, BuildError> {
    let products = products(g);
    write_out_all(g, &products)?;
    Ok(products.len())
}

fn products(g: &Graph) -> Vec<IntegerProduct> {
    g.topological_order().into_iter().filter_map(|id| product_at(g, id)).collect()
}

fn write_out_all(g: &mut Graph, products: &[IntegerProduct]) -> Result<(), BuildError> {
    for p in products {
        write_out(g, *p)?;
    }
    sweep(g, products.iter().map(|p| p.scaled).collect());
    Ok(())
}

/// The weights stored as integers that train by their role.
pub fn trained_weights(g: &Graph) -> Vec<Stored> {
    let mut all = stored_weights(g);
    let roles = UseRoles::new(g);
    all.retain(|w| roles.role(w.value, w.reader.0, w.reader.1).trains());
    all
}

fn product_at(g: &Graph, id: NodeId) -> Option<IntegerProduct> {
    let integral = g.is_op(id, "MatMulInteger") || g.is_op(id, "ConvInteger");
    integer_product(g, id).filter(|_| integral)
}

fn unreadable(g: &Graph, v: ValueId, why: &dyn std::fmt::Display) -> BuildError {
    BuildError { op: "initializer".into(), prefix: g.name(v).to_string(), error: TypeError(why.to_string()) }
}

/// Makes a constant float32.
fn float(g: &mut Graph, w: &Stored) -> Result<(), BuildError> {
    let floats = w.dequantise(g).map_err(|e| unreadable(g, w.value, &e))?;
    g.set_initializer(w.value, floats, false);
    Ok(())
}

fn quantise(g: &mut Graph, w: &Stored, scales: bool) -> Result<(), BuildError> {
    float(g, w)?;
    let name = g.name(w.value).to_string();
    let mut b = Builder::new(g, &name);
    let mut scale = scale_of(&mut b, &w.scale)?;
    if let Some([x, y]) = w.tied.filter(|_| scales) {
        // In the shape that its own scale has.
        let product = scale_of(&mut b, &[x, y])?;
        let own = b.ty(scale)?;
        let dims = b.numbers(&own.shape)?;
        let computed = b.reshape(product, &dims, &own.shape)?;
        let readers: Vec<NodeId> = b.graph.uses(w.value).map(|(n, _)| n).collect();
        b.graph.replace_uses(scale, computed, |n| readers.contains(&n));
        scale = computed;
    }
    let mut attrs = Attrs::new().with("to", i64::from(w.dtype.onnx()));
    if b.ty(scale)?.elements().known() != Some(1) {
        attrs = attrs.with("axis", w.axis as i64);
    }
    if w.block > 0 {
        attrs = attrs.with("block_size", w.block);
    }
    let by_hand = scaled_by_hand(b.graph, w.reader.0);
    if by_hand.is_some() {
        // A product broadcasts its scale; quantisers take a number, or one for each place along the axis.
        let ty = b.ty(scale)?;
        let count: Vec<i64> = if attrs.int("axis").is_some() { vec![w.dims[w.axis]] } else { vec![] };
        if ty.rank() != count.len() {
            scale = b.reshape_to(scale, &count)?;
        }
    }
    let along = attrs.int("axis").map_or(Attrs::new(), |axis| Attrs::new().with("axis", axis));
    let numbers = b.node(Op::in_domain(ANCRE, "Quantize", attrs), &[Some(w.value), Some(scale), w.zero])?[0];
    b.graph.replace_uses(w.value, numbers, |n| n != numbers.node);
    if let Some((scaled, _)) = by_hand {
        let y = b.graph.result(scaled, 0);
        let floats = b.node(Op::new("DequantizeLinear", along), &[Some(numbers), Some(scale)])?[0];
        b.graph.supplant(y, floats);
    }
    Ok(())
}

fn scale_of(b: &mut Builder, scales: &[ValueId]) -> Built {
    match scales {
        [x, y] => b.mul(*x, *y),
        _ => Ok(scales[0]),
    }
}

/// Writes products with packed weights out.
fn unpack(g: &mut Graph, w: &Stored) -> Result<(), BuildError> {
    let readers: Vec<NodeId> = g.uses_in_order(w.value).into_iter().map(|(n, _)| n).collect();
    let zero = w.zero_values(g).map_err(|e| unreadable(g, w.value, &e))?;
    float(g, w)?;
    let name = g.name(w.value).to_string();
    let mut b = Builder::new(g, &name);
    let blocks = [w.dims[0], w.dims[1] / w.block, w.block];
    let rows = b.reshape_to(w.value, &blocks)?;
    let per_block = [w.dims[0], w.dims[1] / w.block, 1];
    let scale = b.reshape_to(w.scale[0], &per_block)?;
    let dims = if zero.len() == 1 { vec![] } else { per_block.to_vec() };
    let zero = b.constant("const/zero_point", Tensor::floats(DType::F32, &dims, &zero));
    let attrs = Attrs::new().with("to", i64::from(w.dtype.onnx()));
    let rows = b.node(Op::in_domain(ANCRE, "FakeQuantize", attrs), &[Some(rows), Some(scale), Some(zero)])?[0];
    let matrix = b.reshape_to(rows, &w.dims)?;
    let matrix = b.transpose(matrix, &[1, 0])?;
    for node in readers {
        let (x, bias, y) = (b.graph.operand(node, 0), b.graph.operand(node, 5), b.graph.result(node, 0));
        let Some(x) = x else { continue };
        let mut product = b.matmul(x, matrix)?;
        if let Some(bias) = bias {
            product = b.add(product, bias)?;
        }
        b.graph.supplant(y, product);
        b.graph.remove(node);
    }
    Ok(())
}

/// Writes a product of integers out as the product of the floats that they stand for.
fn write_out(g: &mut Graph, p: IntegerProduct) -> Result<(), BuildError> {
    let op = g.op(p.product).cloned().unwrap_or_else(|| Op::new("", Attrs::new()));
    let at = |g: &Graph, i: usize| g.operand(p.product, i);
    let (a, w, a_zero, w_zero) = (at(g, 0), at(g, 1), at(g, 2), at(g, 3));
    let (Some(a), Some(w)) = (a, w) else { return Ok(()) };
    let prefix = g.site(p.product).name;
    let y = g.result(p.scaled, 0);
    let mut b = Builder::new(g, &prefix);
    let convolves = op.is("ConvInteger");
    let axis = if convolves { 0 } else { b.ty(w)?.rank() as i64 - 1 };
    let several = b.ty(p.weight_scale)?.elements().known() != Some(1);
    let attrs = if several { Attrs::new().with("axis", axis) } else { Attrs::new() };
    let weight = b.node(Op::new("DequantizeLinear", attrs), &[Some(w), Some(p.weight_scale), w_zero])?[0];
    let x = b.node(Op::new("DequantizeLinear", Attrs::new()), &[Some(a), Some(p.scale), a_zero])?[0];
    let product = if convolves { b.op_with("Conv", op.attrs, &[x, weight])? } else { b.matmul(x, weight)? };
    b.graph.supplant(y, product);
    Ok(())
}

/// Makes one operator of each value that is quantised and dequantised again, also where operators that only move numbers stand between. A
/// `DequantizeLinear` whose integers were made otherwise, or by another scale, stays and is refused.
///
/// # Errors
/// When a node cannot be built.
pub fn pair_quantisers(g: &mut Graph, applied: &mut Applied) -> Result<(), BuildError> {
    let readers: Vec<NodeId> = g.topological_order().into_iter().filter(|id| is_named(g, *id, "DequantizeLinear")).collect();
    let mut pairs = Pairs { b: Builder::new(g, ""), made: HashMap::new() };
    let (mut unread, mut replaced) = (HashSet::new(), Vec::new());
    for id in readers {
        let Some(by) = Affine::of(pairs.b.graph, id) else { continue };
        let y = pairs.b.graph.result(id, 0);
        // A constant that does not train stays as it is stored.
        if pairs.b.graph.constant(by.x).is_some() || !applied.allows(&pairs.b.graph.site(id)) {
            continue;
        }
        match pairs.floats(by.x, &by)? {
            Ok(v) => {
                if unread.contains(&v) || pairs.b.graph.is_output(v) {
                    pairs.b.graph.redirect(y, v);
                } else {
                    pairs.b.graph.supplant(y, v);
                }
                unread.insert(v);
                replaced.push(id);
            }
            Err(why) => applied.refused.push(why.at(pairs.b.graph.site(id))),
        }
    }
    sweep(g, replaced);
    Ok(())
}

/// Removes these nodes, where nobody reads them, and what only they read: what trains is told by the readers of a constant. It is done
/// last, since a new node would get a freed node's place.
fn sweep(g: &mut Graph, mut open: Vec<NodeId>) {
    let mut removed = HashSet::new();
    while let Some(id) = open.pop() {
        if !removed.contains(&id) && g.op(id).is_some() && g.results(id).all(|v| !g.is_needed(v)) {
            let mut made: Vec<NodeId> = g.reads(id).map(|v| v.node).collect();
            made.sort_unstable();
            made.dedup();
            g.remove(id);
            removed.insert(id);
            open.extend(made);
        }
    }
}

/// Values that are quantised as they are computed: all but constants.
pub fn count(g: &Graph) -> usize {
    let fed = g.fed();
    let computed = |id: &NodeId| g.op(*id).is_some_and(|op| op.name == "FakeQuantize") && fed.contains(id);
    g.nodes().filter(computed).count()
}

fn is_named(g: &Graph, id: NodeId, name: &str) -> bool {
    g.op(id).is_some_and(|op| op.name == name && matches!(op.domain.as_str(), "" | "com.microsoft"))
}

/// How a node quantises or dequantises.
#[derive(Clone, Copy)]
struct Affine {
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    axis: i64,
    block: i64,
}

impl Affine {
    fn of(g: &Graph, id: NodeId) -> Option<Affine> {
        let op = g.op(id)?;
        let (x, scale) = (g.operand(id, 0)?, g.operand(id, 1)?);
        let rank = g.tensor_type(x)?.rank() as i64;
        let axis = op.attrs.int("axis").unwrap_or(1);
        let axis = if axis < 0 { axis + rank } else { axis };
        Some(Affine { x, scale, zero: g.operand(id, 2), axis, block: op.attrs.int("block_size").unwrap_or(0) })
    }

    fn has_one_scale(&self, g: &Graph) -> bool {
        g.tensor_type(self.scale).is_some_and(|t| t.elements().known() == Some(1))
    }

    fn same(&self, g: &Graph, other: &Affine) -> bool {
        let zeros = |z: Option<ValueId>| {
            z.is_none_or(|z| g.constant(z).and_then(|t| t.to_f64().ok()).is_some_and(|z| z.iter().all(|z| *z == 0.0)))
        };
        let zero = match (self.zero, other.zero) {
            (Some(a), Some(b)) => same_value(g, a, b) || zeros(self.zero) && zeros(other.zero),
            (a, b) => zeros(a) && zeros(b),
        };
        let places = self.has_one_scale(g) || (self.axis == other.axis && self.block == other.block);
        zero && places && same_value(g, self.scale, other.scale)
    }
}

/// Are two values one, or constants of the same elements, or the same operator's of such?
fn same_value(g: &Graph, a: ValueId, b: ValueId) -> bool {
    if a == b {
        return true;
    }
    if let (Some(x), Some(y)) = (g.constant(a), g.constant(b)) {
        return x.dtype() == y.dtype() && x.len() == y.len() && x.bytes().is_ok_and(|x| y.bytes().is_ok_and(|y| x == y));
    }
    let (Some(x), Some(y)) = (g.op(a.node), g.op(b.node)) else { return false };
    let of_two = x.is("Mul") && y.is("Mul");
    let operands = |v: ValueId| [g.operand(v.node, 0), g.operand(v.node, 1)];
    of_two && operands(a).into_iter().zip(operands(b)).all(|pair| matches!(pair, (Some(x), Some(y)) if same_value(g, x, y)))
}

struct Pairs<'g> {
    b: Builder<'g>,
    /// The floats that integers stand for, by the integers.
    made: HashMap<ValueId, ValueId>,
}

impl Pairs<'_> {
    /// The floats that integers stand for by a scale, if they are quantised by it.
    fn floats(&mut self, v: ValueId, by: &Affine) -> Result<Result<ValueId, Why>, BuildError> {
        let g = &*self.b.graph;
        let node = v.node;
        let Some(op) = g.op(node).cloned() else {
            return Ok(Err(Why::Form("reads integers that the graph does not make".into())));
        };
        let other = || Ok(Err(Why::Form("reads integers of another scale or zero point".into())));
        if is_named(g, node, "DynamicQuantizeLinear") {
            let own = by.scale == g.result(node, 1) && by.zero == Some(g.result(node, 2));
            let Some(x) = g.operand(node, 0).filter(|_| own) else { return other() };
            return self.fake(v, &Affine { x, block: 0, ..*by }, DType::U8).map(Ok);
        }
        if is_named(g, node, "QuantizeLinear") || (op.domain == ANCRE && op.name == "Quantize") {
            let Some(made) = Affine::of(g, node) else {
                return Ok(Err(Why::UnknownType(g.untyped(v))));
            };
            let dtype = g.value(v).ty.dtype.unwrap_or(DType::U8);
            if integer_range(dtype).is_none() && dtype != DType::I32 {
                return Ok(Err(Why::Form(format!("reads numbers of type {dtype}, which are no integers"))));
            }
            return if made.same(g, by) { self.fake(v, &made, dtype).map(Ok) } else { other() };
        }
        let moves = [
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Identity",
            "Slice",
            "Expand",
            "Tile",
            "Gather",
            "MaxPool",
            "DepthToSpace",
            "SpaceToDepth",
            "Split",
        ];
        let moved = op.domain.is_empty() && (moves.contains(&op.name.as_str()) || op.name == "Concat");
        if !moved || !by.has_one_scale(g) || (op.name == "MaxPool" && g.results(node).count() > 1) {
            return Ok(Err(Why::Form(format!("reads integers that {} computes", g.site(node)))));
        }
        if let Some(known) = self.made.get(&v) {
            return Ok(Ok(*known));
        }
        let mut operands = g.operands(node).to_vec();
        let data = if op.name == "Concat" { operands.len() } else { 1 };
        for operand in operands.iter_mut().take(data) {
            let Some(from) = *operand else { continue };
            match self.floats(from, by)? {
                Ok(float) => *operand = Some(float),
                Err(why) => return Ok(Err(why)),
            }
        }
        self.b.prefix = self.b.graph.site(node).name;
        let plain = Op { source: None, ..op };
        let types = self.b.graph.results(node).map(|r| self.b.graph.tensor_type(r)).collect::<Option<Vec<_>>>();
        let Some(types) = types else { return Ok(Err(Why::UnknownType(self.b.graph.untyped(v)))) };
        let dtype = operands.first().copied().flatten().and_then(|v| self.b.graph.value(v).ty.dtype).unwrap_or(DType::F32);
        let floats = types.into_iter().map(|ty| crate::ir::TensorType::new(dtype, ty.shape)).collect();
        let made = self.b.node_of(plain, &operands, floats);
        for (slot, float) in made.iter().enumerate() {
            let old = self.b.graph.result(node, slot as u32);
            self.made.insert(old, *float);
        }
        Ok(Ok(made[v.slot as usize]))
    }

    /// The one operator for integers `v` that are made by a scale.
    fn fake(&mut self, v: ValueId, by: &Affine, dtype: DType) -> Built {
        if let Some(known) = self.made.get(&v) {
            return Ok(*known);
        }
        let b = &mut self.b;
        b.prefix = b.graph.name(by.x).to_string();
        let to = Attrs::new().with("to", i64::from(dtype.onnx()));
        let one = by.has_one_scale(b.graph);
        let made = if by.block > 0 && !one {
            in_blocks(b, by, to)?
        } else {
            let attrs = if one { to } else { to.with("axis", by.axis) };
            b.node(Op::in_domain(ANCRE, "FakeQuantize", attrs), &[Some(by.x), Some(by.scale), by.zero])?[0]
        };
        self.made.insert(v, made);
        Ok(made)
    }
}

/// Blocks along an axis become an axis of their own, over which scales broadcast. Where the last block is not full, each number gets its
/// scale.
fn in_blocks(b: &mut Builder, by: &Affine, to: Attrs) -> Built {
    let x = b.ty(by.x)?;
    let axis = usize::try_from(by.axis).unwrap_or(0);
    let extent = b.number(x.shape.get(axis).unwrap_or(&Dim::from(0)))?;
    let mut zero = None;
    if let Some(v) = by.zero {
        let floats = b.graph.constant(v).and_then(|t| Some(Tensor::floats(DType::F32, t.dims(), &t.to_f64().ok()?)));
        let computed = || b.error("FakeQuantize", TypeError("its zero points are no constants".into()));
        let floats = floats.ok_or_else(computed)?;
        zero = Some(b.constant("const/zero_point", floats));
    }
    let fake = |b: &mut Builder, x: ValueId, scale: ValueId, zero: Option<ValueId>| -> Built {
        let attrs = to.clone().with("block_size", by.block);
        Ok(b.node(Op::in_domain(ANCRE, "FakeQuantize", attrs), &[Some(x), Some(scale), zero])?[0])
    };
    if extent % by.block != 0 {
        let of: Vec<i64> = (0..extent).map(|i| i / by.block).collect();
        let of = b.ints(&of);
        let each = |b: &mut Builder, v: ValueId| b.op_with("Gather", Attrs::new().with("axis", axis as i64), &[v, of]);
        let scale = each(b, by.scale)?;
        let zero = zero.map(|z| each(b, z)).transpose()?;
        return fake(b, by.x, scale, zero);
    }
    let mut dims = x.shape.clone();
    dims.splice(axis..=axis, [Dim::from(extent / by.block), Dim::from(by.block)]);
    let target = b.numbers(&dims)?;
    let blocks = b.reshape(by.x, &target, &dims)?;
    let scale = b.unsqueeze(by.scale, &[axis as i64 + 1])?;
    let zero = zero.map(|z| b.unsqueeze(z, &[axis as i64 + 1])).transpose()?;
    let blocks = fake(b, blocks, scale, zero)?;
    let target = b.numbers(&x.shape)?;
    b.reshape(blocks, &target, &x.shape)
}

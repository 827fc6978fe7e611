//! Weights that a file stores as integers: what stands for them, by the operators that read them.

use crate::ir::{DType, Graph, NodeId, Tensor, TensorError, ValueId};
use crate::ops::integer_range;

/// A constant of integers that stand for floats: (integer − zero point) · scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The constant.
    pub value: ValueId,
    /// The shape of the floats.
    pub dims: Vec<i64>,
    /// Type of the integers.
    pub dtype: DType,
    /// Its scale: the product of one or two values.
    pub scale: Vec<ValueId>,
    /// Its zero point; 0 without one.
    pub zero: Option<ValueId>,
    /// The axis along which scales differ, where there are several.
    pub axis: usize,
    /// Numbers along the axis that share a scale.
    pub block: i64,
    /// Is it packed as `MatMulNBits` has it, rows of whole blocks?
    pub packed: bool,
    /// The scales whose product its own scale has to be: those of the operands of the products that a bias is added to.
    pub tied: Option<[ValueId; 2]>,
    /// The node that reads it, and as which operand. Where several do, the first.
    pub reader: (NodeId, usize),
}

/// A product of integers that is cast and scaled afterwards, as dynamic quantisation writes it:
/// `Mul(Cast(MatMulInteger(a, b, …)), Mul(scale of a, scale of b))`.
#[derive(Clone, Copy, Debug)]
pub struct IntegerProduct {
    /// The `MatMulInteger` or `ConvInteger`.
    pub product: NodeId,
    /// The last `Mul`, whose result is the float product.
    pub scaled: NodeId,
    /// Scale of its first operand.
    pub scale: ValueId,
    /// Scale of its second operand.
    pub weight_scale: ValueId,
}

/// All weights that are stored as integers, in graph order; those whose readers do not agree on what they stand for are left out.
pub fn stored_weights(g: &Graph) -> Vec<Stored> {
    let mut found = Vec::new();
    for id in g.topological_order() {
        let v = g.result(id, 0);
        let integers = |t: DType| t == DType::I32 || integer_range(t).is_some();
        if g.node(id).op().is_some() || g.initializer(v).is_none_or(|t| !integers(t.dtype())) {
            continue;
        }
        let mut readings = g.uses_in_order(v).into_iter().map(|(node, operand)| reading(g, v, node, operand));
        let Some(Some(first)) = readings.next() else { continue };
        let like = |other: Option<Stored>| other.is_some_and(|o| Stored { reader: first.reader, ..o } == first);
        if readings.all(like) && !g.is_output(v) {
            found.push(first);
        }
    }
    found
}

/// What an operator takes the integers of operand `operand` for; `None` where it is none of those that read weights.
fn reading(g: &Graph, value: ValueId, node: NodeId, operand: usize) -> Option<Stored> {
    let (op, tensor) = (g.op(node)?, g.initializer(value)?);
    let dims = tensor.dims().to_vec();
    let rank = dims.len();
    let at = |i: usize| g.operand(node, i);
    let from_end = |axis: i64| usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok();
    let plain = |scale: Vec<ValueId>, zero: Option<ValueId>, axis: usize| Stored {
        value,
        dims: dims.clone(),
        dtype: tensor.dtype(),
        scale,
        zero,
        axis,
        block: 0,
        packed: false,
        tied: None,
        reader: (node, operand),
    };
    let mut found = match (op.name.as_str(), operand) {
        ("DequantizeLinear", 0) => {
            let stored = plain(vec![at(1)?], at(2), from_end(op.attrs.int("axis").unwrap_or(1)).unwrap_or(0));
            let tied = bias_of(g, g.result(node, 0));
            Stored { block: op.attrs.int("block_size").unwrap_or(0), tied, ..stored }
        }
        ("Cast", 0) => {
            let (_, scale) = scaled_by_hand(g, node)?;
            let extents = g.initializer(scale)?.dims();
            let mut long = (0..extents.len()).filter(|a| extents[*a] != 1);
            let (axis, other) = (long.next(), long.next());
            let missing = rank.checked_sub(extents.len())?;
            if other.is_some() || g.single_use(value).is_none() {
                return None;
            }
            plain(vec![scale], None, axis.map_or(0, |a| a + missing))
        }
        ("QLinearConv", 3) => plain(vec![at(4)?], at(5), 0),
        ("QLinearConv", 8) => plain(vec![at(1)?, at(4)?], None, 0),
        ("QLinearMatMul", 3) => plain(vec![at(4)?], at(5), rank.checked_sub(1)?),
        ("QGemm", 3) => plain(vec![at(4)?], at(5), if op.int("transB") == 0 { 1 } else { 0 }),
        ("QGemm", 6) => plain(vec![at(1)?, at(4)?], None, rank.checked_sub(1)?),
        ("QLinearAdd" | "QLinearMul", 0) => plain(vec![at(1)?], at(2), 0),
        ("QLinearAdd" | "QLinearMul", 3) => plain(vec![at(4)?], at(5), 0),
        ("MatMulIntegerToFloat", 1) => plain(vec![at(3)?], at(5), rank.checked_sub(1)?),
        ("DynamicQuantizeMatMul", 1) => plain(vec![at(2)?], at(3), rank.checked_sub(1)?),
        ("MatMulInteger" | "ConvInteger", 1) => {
            let axis = if op.is("ConvInteger") { 0 } else { rank.checked_sub(1)? };
            plain(vec![integer_product(g, node)?.weight_scale], at(3), axis)
        }
        ("MatMulNBits", 1) if at(4).is_none() => {
            let (n, k, bits) = (op.int("N"), op.int("K"), op.int("bits"));
            let dtype = if bits == 4 { DType::U4 } else { DType::U8 };
            let whole = (bits == 4 || bits == 8) && k % op.int("block_size").max(1) == 0;
            let stored = Stored {
                dims: vec![n, k],
                dtype,
                block: op.int("block_size"),
                packed: true,
                ..plain(vec![at(2)?], at(3), 1)
            };
            whole.then_some(stored)?
        }
        _ => return None,
    };
    // Several scales are for places along an axis that is there.
    let several = found.scale.iter().any(|s| g.constant(*s).is_none_or(|t| t.len() != 1));
    if found.axis >= found.dims.len() && several {
        return None;
    }
    found.axis = found.axis.min(found.dims.len().saturating_sub(1));
    // What is no number of the file cannot be written back.
    let known = |v: &ValueId| g.initializer(*v).is_some();
    (found.scale.iter().all(known) && found.zero.iter().all(known) && found.fits(g)).then_some(found)
}

/// Integers that a `Cast` makes float32 and a `Mul` scales, as exporters without `DequantizeLinear` write it: the `Mul` and the scale.
pub fn scaled_by_hand(g: &Graph, cast: NodeId) -> Option<(NodeId, ValueId)> {
    let floats = g.result(cast, 0);
    let (scaled, operand) = g.single_use(floats).filter(|(n, _)| g.is_op(*n, "Mul") && g.is_op(cast, "Cast"))?;
    let scale = g.operand(scaled, 1 - operand)?;
    let is_single = g.tensor_type(floats).is_some_and(|ty| ty.dtype == DType::F32);
    (is_single && g.initializer(scale).is_some()).then_some((scaled, scale))
}

/// The scales of the values whose products a bias, dequantised from integers, is added to, if it has the product of these as its own:
/// kernels of integers take that for granted.
fn bias_of(g: &Graph, bias: ValueId) -> Option<[ValueId; 2]> {
    let (node, operand) = g.single_use(bias)?;
    if operand != 2 || !(g.is_op(node, "Conv") || g.is_op(node, "Gemm")) {
        return None;
    }
    let scale_of = |v: ValueId| g.operand(v.node, 1).filter(|_| g.is_op(v.node, "DequantizeLinear"));
    let tied = [scale_of(g.operand(node, 0)?)?, scale_of(g.operand(node, 1)?)?];
    let own = g.initializer(scale_of(bias)?)?.to_f32().ok()?;
    let product = product(g, &tied).ok()?;
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * a.abs();
    (own.len() == product.len() && own.iter().zip(&product).all(near)).then_some(tied)
}

/// Products of scales, element by element; one of one element is each one's.
///
/// # Errors
/// When a scale is no constant, or cannot be read.
pub fn product(g: &Graph, scales: &[ValueId]) -> Result<Vec<f32>, TensorError> {
    let mut all = vec![1f32];
    for (i, v) in scales.iter().enumerate() {
        let missing = || TensorError { name: g.name(*v).to_string(), what: "is no constant".into() };
        let factor = g.initializer(*v).ok_or_else(missing)?.to_f32()?;
        if factor.is_empty() {
            return Err(TensorError { name: g.name(*v).to_string(), what: "has no elements".into() });
        }
        let n = all.len().max(factor.len());
        let of = |v: &[f32], at: usize| v[at % v.len()];
        all = (0..n).map(|at| if i == 0 { of(&factor, at) } else { of(&all, at) * of(&factor, at) }).collect();
    }
    Ok(all)
}

/// The pattern around a product of integers.
pub fn integer_product(g: &Graph, product: NodeId) -> Option<IntegerProduct> {
    let scale = g.operand(product, 0).and_then(|a| scale_of_integers(g, a))?;
    let (cast, _) =
        g.single_use(g.result(product, 0)).filter(|(n, _)| g.is_op(*n, "Cast") && g.is_float(g.result(*n, 0)))?;
    let (scaled, operand) = g.single_use(g.result(cast, 0)).filter(|(n, _)| g.is_op(*n, "Mul"))?;
    let both = g.operand(scaled, 1 - operand)?;
    let factors = g.op(both.node).filter(|op| op.is("Mul")).map(|_| [g.operand(both.node, 0), g.operand(both.node, 1)])?;
    let weight_scale = match factors {
        [Some(a), Some(b)] if a == scale => b,
        [Some(a), Some(b)] if b == scale => a,
        _ => return None,
    };
    Some(IntegerProduct { product, scaled, scale, weight_scale })
}

/// The scale that integers were made with.
fn scale_of_integers(g: &Graph, v: ValueId) -> Option<ValueId> {
    match g.op(v.node)?.name.as_str() {
        "DynamicQuantizeLinear" => Some(g.result(v.node, 1)),
        "QuantizeLinear" => g.operand(v.node, 1),
        _ => None,
    }
}

impl Stored {
    /// Are there as many scales and zero points as its shape asks for?
    fn fits(&self, g: &Graph) -> bool {
        let positive = self.dims.iter().all(|d| *d > 0) && self.dims.iter().product::<i64>() > 0;
        let len = |v: &ValueId| g.initializer(*v).map_or(0, Tensor::len);
        let fit = |n: usize| n == 1 || n == self.scales();
        let zero = |z: ValueId| g.initializer(z).and_then(|t| t.to_i64().ok()).is_some_and(|z| z.iter().all(|z| *z == 0));
        if self.dtype == DType::I32 && self.zero.is_some_and(|z| !zero(z)) {
            return false;
        }
        let single = |s: &ValueId| g.initializer(*s).is_some_and(|t| t.dtype() == DType::F32);
        positive
            && self.scale.iter().all(single)
            && self.scale.iter().all(|s| fit(len(s)))
            && (self.packed || self.zero.iter().all(|z| fit(len(z))))
    }

    /// Blocks along the axis.
    fn blocks(&self) -> i64 {
        let extent = self.dims.get(self.axis).copied().unwrap_or(1);
        if self.block > 0 { (extent + self.block - 1) / self.block } else { extent }
    }

    /// How many scales it has where it has several.
    fn scales(&self) -> usize {
        if self.block == 0 {
            return self.blocks() as usize;
        }
        let others: i64 = self.dims.iter().enumerate().filter(|(a, _)| *a != self.axis).map(|(_, d)| d).product();
        (others * self.blocks()) as usize
    }

    /// The number of the scale of each element, in order.
    fn places(&self) -> Vec<usize> {
        let inner: i64 = self.dims.iter().skip(self.axis + 1).product();
        let extent = self.dims.get(self.axis).copied().unwrap_or(1);
        let all: i64 = self.dims.iter().product();
        let place = |i: i64| {
            let along = i / inner % extent;
            let at = if self.block == 0 {
                along
            } else {
                (i / inner / extent * self.blocks() + along / self.block) * inner + i % inner
            };
            at as usize
        };
        (0..all).map(place).collect()
    }

    /// The scales, one or all.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn scale_values(&self, g: &Graph) -> Result<Vec<f32>, TensorError> {
        product(g, &self.scale)
    }

    /// The zero points, one or as many as there are scales.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn zero_values(&self, g: &Graph) -> Result<Vec<f64>, TensorError> {
        let middle = integer_range(self.dtype).map_or(0.0, |(low, high)| (low + high + 1.0) / 2.0);
        let Some(tensor) = self.zero.and_then(|z| g.initializer(z)) else {
            return Ok(vec![if self.packed { middle } else { 0.0 }]);
        };
        if !self.packed || tensor.dtype().is_float() {
            return tensor.to_f64();
        }
        // A row's zero points fill whole bytes.
        let rows = self.dims[0] as usize;
        let packed = tensor.bytes()?;
        let (bytes, blocks) = (packed.len() / rows.max(1), self.blocks() as usize);
        let row = |r: usize| numbers(&packed[r * bytes..(r + 1) * bytes], self.dtype, blocks);
        Ok((0..rows).flat_map(row).collect())
    }

    /// The integers, in the order of the floats.
    fn integers(&self, g: &Graph) -> Result<Vec<f64>, TensorError> {
        let missing = || TensorError { name: g.name(self.value).to_string(), what: "is no constant".into() };
        let tensor = g.initializer(self.value).ok_or_else(missing)?;
        if !self.packed {
            return tensor.to_f64();
        }
        // K is a multiple of the block, so that rows are whole.
        let n = self.dims.iter().product::<i64>() as usize;
        Ok(numbers(&tensor.bytes()?, self.dtype, n))
    }

    /// The floats that the integers stand for.
    ///
    /// # Errors
    /// When a constant cannot be read.
    pub fn dequantise(&self, g: &Graph) -> Result<Tensor, TensorError> {
        let (scale, zero) = (self.scale_values(g)?, self.zero_values(g)?);
        let of = |at: usize| ((zero[at % zero.len()]) as f32, scale[at % scale.len()]);
        let floats: Vec<f32> =
            self.integers(g)?.into_iter().zip(self.places()).map(|(q, at)| (q as f32 - of(at).0) * of(at).1).collect();
        Ok(Tensor::f32s(&self.dims, &floats))
    }

    /// The integers that stand for floats of its shape, as the constant stores them: rounded to even, clamped to the type. The
    /// arithmetic is float32's, as the operators have it.
    ///
    /// # Errors
    /// When a constant cannot be read.
    pub fn quantise(&self, g: &Graph, floats: &[f32]) -> Result<Tensor, TensorError> {
        let (scale, zero) = (self.scale_values(g)?, self.zero_values(g)?);
        let (low, high) = integer_range(self.dtype).unwrap_or((i32::MIN.into(), i32::MAX.into()));
        let number = |(x, at): (&f32, usize)| {
            let steps = (x / scale[at % scale.len()]).round_ties_even();
            (f64::from(steps) + zero[at % zero.len()].round_ties_even()).clamp(low, high) as i64
        };
        let all: Vec<i64> = floats.iter().zip(self.places()).map(number).collect();
        if !self.packed {
            return Ok(Tensor::integers(self.dtype, &self.dims, &all));
        }
        let packed = Tensor::integers(self.dtype, &self.dims, &all);
        let stored = g.initializer(self.value).map(|t| t.dims().to_vec()).unwrap_or_default();
        Ok(Tensor::from_bytes(DType::U8, &stored, packed.bytes()?.into_owned()))
    }
}

fn numbers(bytes: &[u8], dtype: DType, n: usize) -> Vec<f64> {
    let nibble = |i: usize| (bytes[i / 2] >> (4 * (i % 2))) & 15;
    (0..n).map(|i| f64::from(if dtype == DType::U4 { nibble(i) } else { bytes[i] })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    #[test]
    fn what_integers_stand_for_comes_back_as_these_integers() {
        let text = "net (float[n, 4] x) => (float[n, 2] y) <int8[4, 2] w = {-128, 127, 3, -5, 0, 1, 77, -90},
            float[2] s = {0.5, 0.25}, int8[2] z = {0, 3}> { d = DequantizeLinear <axis = 1> (w, s, z) y = MatMul (x, d) }";
        let g = parse(text).unwrap();
        let found = stored_weights(&g);
        assert_eq!((found.len(), found[0].axis, found[0].tied), (1, 1, None));
        let floats = found[0].dequantise(&g).unwrap().to_f32().unwrap();
        assert_eq!(floats, [-64.0, 31.0, 1.5, -2.0, 0.0, -0.5, 38.5, -23.25]);
        let w = g.initializer(found[0].value).unwrap();
        assert_eq!(found[0].quantise(&g, &floats).unwrap().bytes().unwrap(), w.bytes().unwrap());
        // Ties go to even, what lies outside to the end.
        let moved = found[0].quantise(&g, &[0.25, 0.375, 99.0, 99.0, 0.75, 0.0, -99.0, -99.0]).unwrap();
        assert_eq!(moved.to_i64().unwrap(), [0, 5, 127, 127, 2, 3, -128, -128]);
    }

    #[test]
    fn readers_that_disagree_leave_a_constant_alone() {
        let text =
            "net (float[n, 2] x) => (float[n, 2] y) <int8[2, 2] w = {1, 2, 3, 4}, float s = {0.5}, float t = {0.25}> {
            a = DequantizeLinear (w, s) b = DequantizeLinear (w, t) c = MatMul (x, a) y = MatMul (c, b) }";
        assert!(stored_weights(&parse(text).unwrap()).is_empty());
    }
}

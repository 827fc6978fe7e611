//! `ancre.FakeQuantize`: y = s · (clamp(round(x / s) + z) − z), what integers of a type can say of x, in x's own type.
//!
//! `QuantizeLinear` and `DequantizeLinear` compute it one after the other. Operands: x, the scale s, the zero point z (0 where it is
//! missing). Both have one element, or one for each place along `axis`, or, without `axis`, a shape that broadcasts into x's; z then is of
//! x's type. `to` is the number of the integer type, whose range clamps; `block_size` says how many numbers share a scale, where its
//! shape does not. Ties round to even.
//!
//! The gradient goes straight through the rounding (arXiv 1308.3432) and is zero where the clamp cut: as in
//! `torch.fake_quantize_per_tensor_affine` that is where the rounded value lies outside. The scale's gradient is that of
//! LSQ, "Learned Step Size Quantization" (arXiv 1902.08153, equation 3), times 1 / √(N · Q) with N numbers that share the scale, in one sample,
//! and Q integers above zero (section 2.2).

use super::broadcast::unbroadcast;
use super::*;

/// The integers of a type: `None` for those of 32 bits, which float32 cannot clamp to, and for what is no integer type.
pub(crate) fn range(dtype: DType) -> Option<(f64, f64)> {
    let (bits, signed) = match dtype {
        DType::I2 | DType::U2 => (2, dtype == DType::I2),
        DType::I4 | DType::U4 => (4, dtype == DType::I4),
        DType::I8 | DType::U8 => (8, dtype == DType::I8),
        DType::I16 | DType::U16 => (16, dtype == DType::I16),
        _ => return None,
    };
    let all = f64::from(1u32 << bits);
    Some(if signed { (-all / 2.0, all / 2.0 - 1.0) } else { (0.0, all - 1.0) })
}

pub(super) const FAKE_QUANTIZE: Row = Row {
    domain: ANCRE,
    name: "FakeQuantize",
    infer: |cx| {
        to(cx.op)?;
        Ok(vec![cx.ty(0)?.clone()])
    },
    pullback: |p| {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let node = p.node();
        let q = Quantiser::of(p.b, node)?;
        if dynamic(p.graph(), node).is_some() {
            // The range is the value's own. It is taken for a constant.
            return p.give(0, |_| Ok(ct));
        }
        let kept = match q.inside(p.b, x)? {
            Some(inside) => p.b.keep(ct, inside, true)?,
            None => ct,
        };
        p.give(0, |_| Ok(kept))?;
        // The scale of 32 bits is a product of two others and has no gradient of its own.
        let Some((_, high)) = q.range.filter(|_| p.wants(1)) else { return Ok(()) };
        let y = p.result(0);
        let ty = p.ty(0)?;
        // (ȳ y − x̄ x) / s is ȳ (round(x / s) − x / s) inside the range, and ȳ times the range's end outside.
        let slope = formula(p.b, [ct, y, kept, x], |[ct, y, kept, x]| ct * y - kept * x)?;
        let sum = match q.axis {
            Some(axis) => {
                let others: Vec<i64> = (0..ty.rank()).filter(|a| *a != axis).map(|a| a as i64).collect();
                p.b.reduce_sum(slope, &others, false)?
            }
            None if p.b.ty(q.scale)?.rank() == 0 => p.b.reduce_all("ReduceSum", slope)?,
            None => unbroadcast(p.b, slope, q.scale)?,
        };
        let weight = p.graph().initializer(x).is_some() || !p.graph().fed().contains(&x.node);
        let block = p.attrs().int("block_size").filter(|n| *n > 0).map(|n| n as f64);
        let sharing = block.unwrap_or(sharing(&ty, &p.b.ty(q.scale)?, q.axis, weight));
        let above = q.zero_number(p.b).map_or(high, |z| (high - z).max(1.0));
        let factor = 1.0 / (sharing * above).sqrt();
        p.give(1, |b| {
            let slope = b.div(sum, q.scale)?;
            b.scale(slope, factor)
        })
    },
    lower: |b, node| {
        let q = Quantiser::of(b, node)?;
        let x = q.x;
        if let Some(made) = dynamic(b.graph, node) {
            let operands = [Some(made), Some(q.scale), q.zero];
            return Ok(vec![b.node(Op::new("DequantizeLinear", Attrs::new()), &operands)?[0]]);
        }
        if q.has_kernels(b) {
            let (numbers, attrs, zero) = q.integers(b)?;
            let operands = [Some(numbers), Some(q.scale), Some(zero)];
            return Ok(vec![b.node(Op::new("DequantizeLinear", attrs), &operands)?[0]]);
        }
        let scale = q.spread(b, q.scale)?;
        let numbers = b.div(x, scale)?;
        let mut numbers = b.op("Round", &[numbers])?;
        if let Some((low, high)) = q.range {
            let dtype = b.ty(x)?.dtype;
            let zero = q.zero_number(b);
            let (low, high) = (b.scalar(dtype, low - zero.unwrap_or(0.0)), b.scalar(dtype, high - zero.unwrap_or(0.0)));
            let shift = if zero.is_some() { None } else { q.float_zero(b)? };
            if let Some(z) = shift {
                numbers = b.add(numbers, z)?;
            }
            numbers = b.op("Clip", &[numbers, low, high])?;
            if let Some(z) = shift {
                numbers = b.sub(numbers, z)?;
            }
        }
        Ok(vec![b.mul(numbers, scale)?])
    },
    ..ROW
};

/// `ancre.Quantize`: clamp(round(x / s) + z) as integers of the type `to`, also of 32 bits. Operands and attributes as above.
pub(super) const QUANTIZE: Row = Row {
    domain: ANCRE,
    name: "Quantize",
    infer: |cx| Ok(vec![TensorType::new(to(cx.op)?, cx.ty(0)?.shape.clone())]),
    derivative: Derivative::None("nothing reads its integers as numbers"),
    lower: |b, node| {
        let q = Quantiser::of(b, node)?;
        if q.range.is_none() {
            let scale = q.spread(b, q.scale)?;
            let numbers = b.div(q.x, scale)?;
            let numbers = b.op("Round", &[numbers])?;
            return Ok(vec![b.cast(numbers, q.to)?]);
        }
        Ok(vec![q.integers(b)?.0])
    },
    ..ROW
};

fn to(op: &Op) -> Result<DType, TypeError> {
    let to = op.attrs.int("to").and_then(|to| DType::from_onnx(i32::try_from(to).ok()?));
    to.filter(|t| range(*t).is_some() || *t == DType::I32)
        .ok_or_else(|| TypeError("its `to` names no integer type that quantised numbers have".into()))
}

/// How many numbers of one sample share one element of a scale. The first axis of what is no weight is the batch.
fn sharing(x: &TensorType, scale: &TensorType, axis: Option<usize>, weight: bool) -> f64 {
    let lead = x.rank().saturating_sub(scale.rank());
    let own = |a: usize| match axis {
        Some(axis) => a == axis,
        None => a >= lead && scale.shape.get(a - lead).is_some_and(|d| !d.is_one()),
    };
    let shared = (0..x.rank()).filter(|a| !own(*a) && (weight || *a > 0));
    shared.filter_map(|a| x.shape[a].known()).map(|n| n as f64).product::<f64>().max(1.0)
}

/// The integers that `DynamicQuantizeLinear` has made of the operand already, where it also gives the scale.
fn dynamic(g: &Graph, node: NodeId) -> Option<ValueId> {
    let scale = g.operand(node, 1)?;
    let from = scale.node;
    let same = g.is_op(from, "DynamicQuantizeLinear") && g.operand(from, 0) == g.operand(node, 0);
    same.then(|| g.result(from, 0))
}

/// The operands of a quantising node.
struct Quantiser {
    x: ValueId,
    scale: ValueId,
    zero: Option<ValueId>,
    axis: Option<usize>,
    to: DType,
    range: Option<(f64, f64)>,
}

impl Quantiser {
    fn of(b: &Builder, node: NodeId) -> Result<Quantiser, BuildError> {
        let fail = |e: TypeError| b.error("FakeQuantize", e);
        let op = b.graph.op(node).ok_or_else(|| fail(TypeError("it is no operator".into())))?;
        let operand = |i: usize| b.graph.operand(node, i);
        let (Some(x), Some(scale)) = (operand(0), operand(1)) else {
            return Err(fail(TypeError("an operand is missing".into())));
        };
        let to = to(op).map_err(fail)?;
        let axis = op.attrs.int("axis").and_then(|a| usize::try_from(a).ok());
        Ok(Quantiser { x, scale, zero: operand(2), axis, to, range: range(to) })
    }

    /// A value of the scale's shape in one that broadcasts into the operand's.
    fn spread(&self, b: &mut Builder, v: ValueId) -> Built {
        let Some(axis) = self.axis else { return Ok(v) };
        let behind = b.ty(self.x)?.rank().saturating_sub(axis + 1);
        b.unsqueeze(v, &(1..=behind as i64).collect::<Vec<_>>())
    }

    /// The zero point, where it is one number for all.
    fn zero_number(&self, b: &Builder) -> Option<f64> {
        let Some(zero) = self.zero else { return Some(0.0) };
        let all = b.graph.constant(zero)?.to_f64().ok()?;
        let first = *all.first()?;
        all.iter().all(|z| *z == first).then_some(first)
    }

    /// The zero point as floats that broadcast into the operand.
    fn float_zero(&self, b: &mut Builder) -> Result<Option<ValueId>, BuildError> {
        let Some(zero) = self.zero else { return Ok(None) };
        let dtype = b.ty(self.x)?.dtype;
        let zero = b.cast(zero, dtype)?;
        self.spread(b, zero).map(Some)
    }

    /// The zero point in the integers' type, which tells the operator what type to make.
    fn typed_zero(&self, b: &mut Builder) -> Built {
        match self.zero {
            Some(zero) => Ok(zero),
            None => {
                let dims = b.ty(self.scale)?;
                let dims = b.numbers(&dims.shape)?;
                let zeros = vec![0; dims.iter().product::<i64>() as usize];
                Ok(b.constant("const/zero_point", Tensor::integers(self.to, &dims, &zeros)))
            }
        }
    }

    /// The integers by the standard operator, and the attributes and the zero point that it has.
    fn integers(&self, b: &mut Builder) -> Result<(ValueId, Attrs, ValueId), BuildError> {
        let attrs = self.axis.map_or_else(Attrs::new, |axis| Attrs::new().with("axis", axis as i64));
        let zero = self.typed_zero(b)?;
        let numbers = b.node(Op::new("QuantizeLinear", attrs.clone()), &[Some(self.x), Some(self.scale), Some(zero)])?[0];
        Ok((numbers, attrs, zero))
    }

    /// Have the standard operators kernels for it in the graph's operator set? Then two passes do what else takes five.
    fn has_kernels(&self, b: &Builder) -> bool {
        let narrow = matches!(self.to, DType::I8 | DType::U8);
        let wide = matches!(self.to, DType::I16 | DType::U16) && b.opset() >= 21;
        let typed = |v: ValueId| b.graph.tensor_type(v);
        let float = typed(self.x).is_some_and(|t| t.dtype == DType::F32);
        let integral = self.zero.is_none_or(|z| typed(z).is_some_and(|t| t.dtype == self.to));
        let one = self.axis.is_some()
            || typed(self.scale).is_some_and(|t| t.rank() == 0 || t.shape.iter().all(Dim::is_one) && t.rank() == 1);
        float && integral && one && (narrow || wide)
    }

    /// Where the rounded operand lies in the range, as booleans; `None` where it always does.
    fn inside(&self, b: &mut Builder, x: ValueId) -> Result<Option<ValueId>, BuildError> {
        let Some((low, high)) = self.range else { return Ok(None) };
        let scale = self.spread(b, self.scale)?;
        let number = self.zero_number(b);
        let zero = if number.is_some() { None } else { self.float_zero(b)? };
        // Half a step beyond the ends rounds to them.
        let bound = |b: &mut Builder, end: f64| match zero {
            None => b.scale(scale, end - number.unwrap_or(0.0)),
            Some(z) => {
                let steps = b.from_number_sub(end, z)?;
                b.mul(steps, scale)
            }
        };
        let above_zero = number.is_some_and(|z| low - z <= 0.0) && is_never_negative(b.graph, x);
        let low = if above_zero { None } else { Some(bound(b, low - 0.5)?) };
        let high = bound(b, high + 0.5)?;
        b.between(x, low, Some(high)).map(Some)
    }
}

/// Is a value an activation's that is nowhere below zero?
fn is_never_negative(g: &Graph, v: ValueId) -> bool {
    let names = ["Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt", "Softplus"];
    g.op(v.node).is_some_and(|op| op.domain.is_empty() && names.contains(&op.name.as_str()))
}

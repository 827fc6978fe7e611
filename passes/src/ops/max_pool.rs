//! `MaxPool`: the maximum of every window. Result 1 is each maximum's place in the flattened operand.

use super::scatter::add_at;
use super::window::{Window, pooled};
use super::*;

pub(super) const MAX_POOL: Row = Row {
    name: "MaxPool",
    infer: |cx| {
        let ty = pooled(cx)?;
        let places = TensorType::new(DType::I64, ty.shape.clone());
        Ok(vec![ty, places])
    },
    // Each window's cotangent goes to its first maximum, at the place that result 1 reports.
    pullback: |p| {
        let ct = p.ct(0)?;
        let op = p.op();
        if op.int("storage_order") != 0 {
            return Err(p.unsupported("its indices are in column-major order"));
        }
        let (x, x_ty) = (p.operand(0)?, p.ty(0)?);
        let window = p.told(|cx| Window::of(cx, None))?;
        let places = TensorType::new(DType::I64, p.b.ty(ct)?.shape);
        let places = p.extra_result(1, "places", places);
        let zero = p.b.scalar(x_ty.dtype, 0.0);
        let zeros = p.b.expand_like(zero, x)?;
        let flat = |p: &mut Pullback, v: ValueId| -> Result<ValueId, GradError> {
            let elements = p.b.ty(v)?.elements();
            Ok(p.b.reshape(v, &[-1], &[elements])?)
        };
        let (zeros, places, ct) = (flat(p, zeros)?, flat(p, places)?, flat(p, ct)?);
        // Windows that share no cell write each place once.
        let apart = (0..window.rank()).all(|i| window.strides[i] >= window.reach(i));
        let placed = if apart {
            p.b.op_with("ScatterElements", Attrs::new().with("axis", 0), &[zeros, places, ct])?
        } else {
            add_at(p.b, zeros, places, ct, 0)?
        };
        p.give(0, |b| b.reshape_like(placed, x))
    },
    samples: || {
        let of = |attrs: Attrs, x: &[i64]| sample(attrs, vec![distinct(x)]);
        let a = |kernel: Vec<i64>| Attrs::new().with("kernel_shape", kernel);
        let two = |v: i64| vec![v, v];
        vec![
            of(a(two(3)).with("strides", two(2)).with("pads", vec![1; 4]), &[2, 2, 6, 7]),
            of(a(two(2)).with("strides", two(2)), &[2, 2, 4, 5]),
            of(a(two(2)), &[1, 2, 4, 4]),
            of(a(two(3)).with("strides", two(2)).with("ceil_mode", 1), &[1, 2, 6, 6]),
            of(a(two(2)).with("auto_pad", "SAME_UPPER").with("strides", two(2)), &[1, 2, 5, 5]),
            of(a(two(2)).with("dilations", two(2)), &[1, 2, 5, 5]),
            of(a(vec![3]).with("strides", vec![2]), &[2, 2, 7]),
            of(a(vec![2, 2, 2]).with("strides", vec![2, 2, 2]), &[1, 2, 4, 4, 4]),
            sample(a(two(3)), vec![floats(&[1, 1, 5, 5])]).results(2).shape_only(),
        ]
    },
    ..ROW
};

/// Numbers so far apart that a finite difference does not change which of them is the largest.
fn distinct(dims: &[i64]) -> SampleOperand {
    let n: i64 = dims.iter().product();
    let values = (0..n).map(|i| ((i * 7919 + 13) % 1009) as f32 / 100.0 - 5.0).collect();
    SampleOperand::Values { dims: dims.to_vec(), values }
}

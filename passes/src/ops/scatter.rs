//! `ScatterElements` and `ScatterND`: x with updates written (or added) at indices along an axis, or at coordinates.
//!
//! Indices may repeat only with a reduction, of which only `add` is differentiated.

use super::*;

pub(super) const SCATTER_ELEMENTS: Row = Row {
    name: "ScatterElements",
    infer: like_first,
    pullback: |p| pullback(p, ["ScatterElements", "GatherElements"]),
    samples: || {
        vec![
            sample(Attrs::new().with("axis", 1), vec![floats(&[2, 4]), ints_of(&[2, 2], &[1, -1, 0, 2]), floats(&[2, 2])]),
            sample(adding(), vec![floats(&[3, 2]), ints_of(&[2, 2], &[2, 0, 2, 0]), floats(&[2, 2])]),
        ]
    },
    ..ROW
};

pub(super) const SCATTER_ND: Row = Row {
    name: "ScatterND",
    pullback: |p| pullback(p, ["ScatterND", "GatherND"]),
    samples: || {
        vec![
            plain(vec![floats(&[4, 2]), ints_of(&[2, 1], &[1, -1]), floats(&[2, 2])]),
            sample(adding(), vec![floats(&[3, 3]), ints_of(&[2, 2], &[1, 0, 1, 0]), floats(&[2])]),
        ]
    },
    ..SCATTER_ELEMENTS
};

fn adding() -> Attrs {
    Attrs::new().with("reduction", "add")
}

/// Writing: x̄ = ȳ with zeros at the places; adding: x̄ = ȳ. updates̅ = ȳ gathered at the places.
fn pullback(p: &mut Pullback, [scatter, gather]: [&str; 2]) -> Result<(), GradError> {
    let (indices, updates, ct, op) = (p.operand(1)?, p.operand(2)?, p.ct(0)?, p.op());
    let adds = match op.str("reduction") {
        "none" => false,
        "add" => true,
        other => return Err(p.unsupported(&format!("its reduction is {other}; only writing and adding are differentiated"))),
    };
    let axis = if scatter == "ScatterND" { Attrs::new() } else { Attrs::new().with("axis", op.int("axis")) };
    p.give(0, |b| {
        if adds {
            return Ok(ct);
        }
        let zeros = b.zeros_like(updates)?;
        b.op_with(scatter, axis.clone(), &[ct, indices, zeros])
    })?;
    p.give(2, |b| b.op_with(gather, axis.clone(), &[ct, indices]))
}

/// `base` with `updates` added at `places` along an axis. Half precision is summed in single precision, because ONNX Runtime
/// adds float16 here only on CUDA, and bfloat16 nowhere.
pub(super) fn add_at(b: &mut Builder, base: ValueId, places: ValueId, updates: ValueId, axis: usize) -> Built {
    let dtype = b.ty(base)?.dtype;
    let half = matches!(dtype, DType::F16 | DType::BF16);
    let (base, updates) = if half { (b.cast(base, DType::F32)?, b.cast(updates, DType::F32)?) } else { (base, updates) };
    let attrs = Attrs::new().with("axis", axis as i64).with("reduction", "add");
    let sum = b.op_with("ScatterElements", attrs, &[base, places, updates])?;
    if half { b.cast(sum, dtype) } else { Ok(sum) }
}

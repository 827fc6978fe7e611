//! `RotaryEmbedding` turns pairs of features by angles that depend on the position.

use super::*;

/// The operator of opset 23. Operands: x, cosines, sines, positions.
pub(in crate::ops) const ROTARY: Row = Row {
    name: "RotaryEmbedding",
    infer: like_first,
    derivative: Derivative::Decompose("Mul, Add"),
    decompose: |b, s| one_of(rotate(b, s, s.need(0)?, s.need(1)?, s.need(2)?, s.get(3))),
    samples: || {
        let operands = || vec![floats(&[2, 3, 4, 8]), floats(&[2, 4, 4]), floats(&[2, 4, 4])];
        let attrs = Attrs::new().with("interleaved", 1);
        vec![plain(operands()).at(23), sample(attrs, operands()).at(23)]
    },
    ..ROW
};

/// The operator of ONNX Runtime. Operands: x, positions (an offset, or a position for each token), cosines, sines.
pub(in crate::ops) const FUSED: Row = Row {
    domain: MICROSOFT,
    decompose: |b, s| {
        refuse_if(s.op.int("is_packed_batching") == 1, Why::Feature("packed batches"))?;
        refuse_if(s.op.attrs.float("scale").is_some_and(|scale| scale != 1.0), Why::Feature("a scale"))?;
        let x = s.need(0)?;
        let axis = token_axis(&type_of(b, x)?)?;
        let at = positions_of(b, s.need(1)?, x, axis)?;
        one_of(rotate(b, s, x, s.need(2)?, s.need(3)?, Some(at)))
    },
    samples: || {
        let at = ints_of(&[2, 3], &[0, 1, 2, 2, 3, 4]);
        let offset = ints(&[1]);
        let table = |f: fn(f32) -> f32| SampleOperand::FloatConstant {
            dims: vec![6, 2],
            values: (0..12).map(|i| f(i as f32 / 3.0)).collect(),
        };
        let of = |at: SampleOperand, x: &[i64]| plain(vec![floats(x), at, table(f32::cos), table(f32::sin)]);
        vec![of(at, &[2, 3, 8]), of(offset, &[2, 2, 3, 4])]
    },
    ..ROTARY
};

/// The axis of positions.
fn token_axis(x: &TensorType) -> Result<usize, Why> {
    match x.rank() {
        4 => Ok(2),
        3 => Ok(1),
        _ => Err(unfit(format!("takes no operand of type {x}"))),
    }
}

fn one_of(v: Result<ValueId, Why>) -> Decomposed {
    Ok(vec![v?])
}

/// Turns pairs of features by angles that depend on the position: [B,S,H·D] or [B,H,S,D].
fn rotate(
    b: &mut Builder,
    s: &Source,
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    positions: Option<ValueId>,
) -> Result<ValueId, Why> {
    let ty = type_of(b, x)?;
    let heads = s.op.int("num_heads");
    let mut part = s.op.int("rotary_embedding_dim");
    let width = match ty.rank() {
        4 => extent(b, x, 3)?,
        // Without a number of heads the tables tell the width of a head.
        3 if heads > 0 => extent(b, x, 2)? / heads,
        3 if part == 0 => 2 * extent(b, cos, type_of(b, cos)?.rank().saturating_sub(1))?,
        3 => return Err(Why::Feature("`rotary_embedding_dim` without `num_heads`")),
        _ => return Err(unfit(format!("takes no operand of type {ty}"))),
    };
    refuse_if(width < 1, unfit("has heads of width 0"))?;
    part = if part == 0 { width } else { part };
    // A flat operand becomes [B,S,H,D]. `axis` is the axis of heads, which share their angles.
    let (grid, axis) = if ty.rank() == 4 {
        (x, 1)
    } else {
        let heads = extent(b, x, 2)? / width;
        refuse_if(heads < 1, unfit(format!("has heads of width {width} in {ty}")))?;
        let shape = [ty.shape[0].clone(), ty.shape[1].clone(), Dim::from(heads), Dim::from(width)];
        (b.reshape(x, &[0, 0, heads, width], &shape)?, 2)
    };
    let angle = |b: &mut Builder, table: ValueId| -> Built {
        let rows = match positions {
            Some(at) => b.op_with("Gather", Attrs::new().with("axis", 0), &[table, at])?,
            None => table,
        };
        b.unsqueeze(rows, &[axis])
    };
    let (cos, sin) = (angle(b, cos)?, angle(b, sin)?);
    let turned = if part == width { grid } else { b.slice(grid, 3, 0, part)? };
    let turned = if s.op.int("interleaved") == 1 {
        turn_pairs(b, turned, cos, sin, part)?
    } else {
        let (first, second) = (b.slice(turned, 3, 0, part / 2)?, b.slice(turned, 3, part / 2, part)?);
        let [first, second] = turn(b, first, second, cos, sin)?;
        b.concat(&[first, second], 3)?
    };
    let whole = if part == width {
        turned
    } else {
        let rest = b.slice(grid, 3, part, width)?;
        b.concat(&[turned, rest], 3)?
    };
    if ty.rank() == 4 {
        return Ok(whole);
    }
    let width = extent(b, x, 2)?;
    Ok(b.reshape(whole, &[0, 0, width], &ty.shape)?)
}

/// (x cos − y sin, x sin + y cos).
fn turn(b: &mut Builder, x: ValueId, y: ValueId, cos: ValueId, sin: ValueId) -> Result<[ValueId; 2], BuildError> {
    formulas(b, [x, y, cos, sin], |[x, y, cos, sin]| {
        let (xc, ys, xs, yc) = (x * cos, y * sin, x * sin, y * cos);
        [xc - ys, xs + yc]
    })
}

/// Turns the features 2i and 2i + 1.
fn turn_pairs(b: &mut Builder, x: ValueId, cos: ValueId, sin: ValueId, part: i64) -> Built {
    let ty = b.ty(x)?;
    let mut shape = ty.shape.clone();
    shape[3] = Dim::from(part / 2);
    shape.push(Dim::from(2));
    let pairs = b.reshape(x, &[0, 0, 0, part / 2, 2], &shape)?;
    let element = |b: &mut Builder, i: i64| -> Built {
        let one = b.slice(pairs, 4, i, i + 1)?;
        b.squeeze(one, &[4])
    };
    let (first, second) = (element(b, 0)?, element(b, 1)?);
    let [first, second] = turn(b, first, second, cos, sin)?;
    let (first, second) = (b.unsqueeze(first, &[4])?, b.unsqueeze(second, &[4])?);
    let joined = b.concat(&[first, second], 4)?;
    b.reshape(joined, &[0, 0, 0, part], &ty.shape)
}

/// The int64 position of each row: given, or counted from a given offset.
fn positions_of(b: &mut Builder, given: ValueId, rows: ValueId, axis: usize) -> Result<ValueId, Why> {
    let ty = type_of(b, given)?;
    if ty.rank() == 2 {
        return Ok(given);
    }
    refuse_if(ty.rank() != 1 || !ty.shape[0].is_one(), unfit(format!("takes no positions of type {ty}")))?;
    let steps = positions(b, rows, axis)?;
    let offset = b.cast(given, DType::I64)?;
    let at = b.add(steps, offset)?;
    Ok(b.unsqueeze(at, &[0])?)
}

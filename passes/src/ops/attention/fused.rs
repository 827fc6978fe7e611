//! Attention of ONNX Runtime's own operator set: with packed weights, or with queries, keys and values as operands.

use super::*;

/// Operands: x, weights and biases of queries, keys and values side by side, mask, past, bias of the scores. One product with
/// all weights is split into queries, keys and values.
pub(in crate::ops) const PACKED: Row = Row {
    domain: MICROSOFT,
    name: "Attention",
    infer: |cx| {
        let (x, w) = (cx.ty(0)?, cx.ty(1)?);
        cx.require(x.rank() == 3 && w.rank() == 2, || {
            format!("x is {x} and the weights are {w}; an attention takes ranks 3 and 2")
        })?;
        let sizes = cx.attrs().ints("qkv_hidden_sizes").and_then(|sizes| sizes.get(2).copied());
        let width = match sizes {
            Some(values) => Some(Dim::from(values)),
            None => w.shape[1].div_exact(&Dim::from(3)),
        };
        let width = width.ok_or_else(|| TypeError(format!("the columns of weights {w} do not make three equal parts")))?;
        Ok(vec![TensorType::new(x.dtype, vec![x.shape[0].clone(), x.shape[1].clone(), width])])
    },
    derivative: Derivative::Decompose("MatMul, Softmax, MatMul; without a key cache"),
    decompose: packed_attention,
    samples: || {
        let attrs = |sizes: &[i64]| Attrs::new().with("num_heads", 2).with("qkv_hidden_sizes", sizes.to_vec());
        let operands = |width: i64| vec![floats(&[2, 3, 8]), floats(&[8, width]), floats(&[width])];
        vec![sample(Attrs::new().with("num_heads", 2), operands(24)), sample(attrs(&[8, 8, 4]), operands(20))]
    },
    ..ROW
};

/// Operands: query, key, value, packed bias, mask of keys, bias of the scores, past keys and values.
pub(in crate::ops) const MULTI_HEAD: Row = Row {
    name: "MultiHeadAttention",
    // Queries are [batch, length, width]; packed with keys and values they are [batch, length, heads, 3, size].
    infer: |cx| {
        let q = cx.ty(0)?;
        let width = match (q.rank(), (cx.present)(2)) {
            (5, _) => &q.shape[2] * &q.shape[4],
            (3, true) if cx.ty(2)?.rank() == 3 => cx.ty(2)?.shape[2].clone(),
            (3, true) if cx.ty(2)?.rank() == 4 => &cx.ty(2)?.shape[1] * &cx.ty(2)?.shape[3],
            (3, false) => q.shape[2].clone(),
            _ => return Err(TypeError(format!("queries of type {q} do not fit its other operands"))),
        };
        Ok(vec![TensorType::new(q.dtype, vec![q.shape[0].clone(), q.shape[1].clone(), width])])
    },
    decompose: multi_head_attention,
    samples: || {
        let attrs = Attrs::new().with("num_heads", 2);
        vec![sample(attrs, vec![floats(&[2, 3, 8]), floats(&[2, 5, 8]), floats(&[2, 5, 4])])]
    },
    ..PACKED
};

/// Scale, causality, masks of keys and bias, which both attention operators have.
fn scores(
    b: &mut Builder,
    s: &Source,
    [q, k]: [ValueId; 2],
    mask: Option<ValueId>,
    bias: Option<ValueId>,
) -> Result<Scores, Why> {
    let (tq, tk) = (type_of(b, q)?, type_of(b, k)?);
    let depth = extent(b, q, 3)?;
    let given = s.op.float("scale") as f64;
    let mut masks = Vec::new();
    if let Some(mask) = mask {
        let ty = type_of(b, mask)?;
        let filter = s.op.attrs.float("mask_filter_value").unwrap_or(-10000.0) as f64;
        let same = |d: &Dim, e: &Dim| d == e || d.known().is_none() || e.known().is_none();
        let axes: &[i64] = match ty.rank() {
            2 if same(&ty.shape[1], &tk.shape[2]) => &[1, 2],
            3 if same(&ty.shape[1], &tq.shape[2]) && same(&ty.shape[2], &tk.shape[2]) => &[1],
            // The mask holds lengths: keys from there on are padding.
            1 if ty.shape[0] == tq.shape[0] => {
                let lengths = b.unsqueeze(mask, &[1])?;
                let lengths = b.cast(lengths, DType::I64)?;
                let places = positions(b, k, 2)?;
                let allowed = b.op("Less", &[places, lengths])?;
                let bias = filtered(b, allowed, tq.dtype, filter)?;
                masks.push(Mask::Bias(b.unsqueeze(bias, &[1, 2])?));
                &[]
            }
            _ => return Err(unfit(format!("takes no mask of type {ty}"))),
        };
        if !axes.is_empty() {
            let wide = b.unsqueeze(mask, axes)?;
            let bias = filtered(b, wide, tq.dtype, filter)?;
            masks.push(Mask::Bias(bias));
        }
    }
    masks.extend(bias.map(Mask::Bias));
    Ok(Scores {
        scale: if given == 0.0 { 1.0 / (depth as f64).sqrt() } else { given },
        causal: s.op.int("unidirectional") == 1,
        masks,
        ..Scores::default()
    })
}

/// 0 where a mask is 1, `filter` where it is 0.
fn filtered(b: &mut Builder, mask: ValueId, dtype: DType, filter: f64) -> Built {
    formula(b, [mask], |[mask]| (mask.cast(dtype) - 1.0) * -filter)
}

fn packed_attention(b: &mut Builder, s: &Source) -> Decomposed {
    refuse_if(s.get(4).is_some() || s.get(6).is_some(), Why::Feature("a key cache"))?;
    refuse_if(s.op.int("do_rotary") == 1, Why::Feature("a rotary embedding of its own"))?;
    s.first_results_only(1, "the key cache it reports")?;
    let (x, w) = (s.need(0)?, s.need(1)?);
    let width = extent(b, w, 1)?;
    let sizes = s.op.attrs.ints("qkv_hidden_sizes").map_or_else(|| vec![width / 3; 3], <[i64]>::to_vec);
    let fit = sizes.len() == 3 && sizes.iter().sum::<i64>() == width;
    refuse_if(!fit, unfit(format!("has weights of {width} columns for parts of {sizes:?}")))?;
    let packed = b.matmul(x, w)?;
    let packed = s.get(2).map_or(Ok(packed), |bias| b.add(packed, bias))?;
    let parts = split_last(b, packed, &sizes)?;
    of_heads(b, s, &parts, s.get(3), s.get(5))
}

fn multi_head_attention(b: &mut Builder, s: &Source) -> Decomposed {
    refuse_if(s.operands.iter().skip(6).any(Option::is_some), Why::Feature("a key cache"))?;
    s.first_results_only(1, "the key cache it reports")?;
    if s.get(1).is_none() || s.get(2).is_none() {
        return Err(Why::Feature("queries, keys and values in one operand"));
    }
    let mut parts = vec![s.need(0)?, s.need(1)?, s.need(2)?];
    if let Some(bias) = s.get(3) {
        for v in &parts {
            let ty = type_of(b, *v)?;
            refuse_if(ty.rank() != 3, unfit(format!("has a bias to an operand of type {ty}")))?;
        }
        let widths = parts.iter().map(|v| extent(b, *v, 2)).collect::<Result<Vec<i64>, Why>>()?;
        for (part, bias) in parts.iter_mut().zip(split_last(b, bias, &widths)?) {
            *part = b.add(*part, bias)?;
        }
    }
    let ty = type_of(b, parts[0])?;
    refuse_if(ty.rank() != 3, unfit(format!("takes no queries of type {ty}")))?;
    of_heads(b, s, &parts, s.get(4), s.get(5))
}

/// The attention of queries, keys and values [B,S,H·D].
fn of_heads(b: &mut Builder, s: &Source, parts: &[ValueId], mask: Option<ValueId>, bias: Option<ValueId>) -> Decomposed {
    let heads = s.op.int("num_heads");
    let (q, k, v) = (split_heads(b, parts[0], heads)?, split_heads(b, parts[1], heads)?, split_heads(b, parts[2], heads)?);
    let how = scores(b, s, [q, k], mask, bias)?;
    let y = attend(b, q, k, v, &how)?;
    Ok(vec![join_heads(b, y)?])
}

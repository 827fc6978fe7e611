//! `Attention` of opset 23 and later, without a key cache.

use super::*;

pub(in crate::ops) const ATTENTION: Row = Row {
    name: "Attention",
    infer: attended,
    derivative: Derivative::Decompose("MatMul, Softmax, MatMul; without a key cache"),
    decompose: plain,
    samples: || {
        let heads = Attrs::new().with("q_num_heads", 4).with("kv_num_heads", 2);
        let causal = Attrs::new().with("is_causal", 1).with("softcap", 2.0_f32);
        let of = |attrs: Attrs, q: &[i64], k: &[i64], v: &[i64]| sample(attrs, vec![floats(q), floats(k), floats(v)]).at(23);
        vec![
            of(Attrs::new(), &[2, 3, 4, 8], &[2, 3, 5, 8], &[2, 3, 5, 6]),
            of(heads, &[2, 4, 32], &[2, 5, 16], &[2, 5, 12]),
            of(causal, &[2, 2, 4, 8], &[2, 2, 4, 8], &[2, 2, 4, 6]),
        ]
    },
    ..ROW
};

/// [batch, heads, queries, width], or [batch, queries, heads · width]. The types of the cache results stay unknown.
fn attended(cx: &Infer) -> Types {
    let (q, v) = (cx.ty(0)?, cx.ty(2)?);
    cx.require(q.rank() == v.rank() && (3..=4).contains(&q.rank()), || {
        format!("queries {q} and values {v} are not both of rank 3 or both of rank 4")
    })?;
    let mut out = q.clone();
    if q.rank() == 4 {
        out.shape[3] = v.shape[3].clone();
        return Ok(vec![out]);
    }
    let heads = |name: &str| {
        let n = cx.op.int(name);
        if n > 0 { Ok(Dim::from(n)) } else { Err(TypeError(format!("`{name}` is missing"))) }
    };
    let width = v.shape[2].div_exact(&heads("kv_num_heads")?).unwrap_or_else(|| unknown_dim("width"));
    out.shape[2] = &width * &heads("q_num_heads")?;
    Ok(vec![out])
}

fn plain(b: &mut Builder, s: &Source) -> Decomposed {
    let cached = (4..7).any(|i| s.get(i).is_some());
    refuse_if(cached, Why::Feature("a key cache"))?;
    let windowed = ["left_window_size", "right_window_size"].iter().any(|a| s.op.int(a) >= 0);
    refuse_if(windowed, Why::Feature("a window of keys"))?;
    s.first_results_only(1, "the cache or the scores it reports")?;
    let flat = type_of(b, s.need(0)?)?.rank() == 3;
    let (q_heads, kv_heads) = (s.op.int("q_num_heads"), s.op.int("kv_num_heads"));
    let q = split_heads(b, s.need(0)?, q_heads)?;
    let k = split_heads(b, s.need(1)?, kv_heads)?;
    let v = split_heads(b, s.need(2)?, kv_heads)?;
    let (h, groups, depth) = (extent(b, q, 1)?, extent(b, k, 1)?, extent(b, q, 3)?);
    refuse_if(
        groups == 0 || h % groups != 0,
        unfit(format!("has {h} heads of queries, no multiple of its {groups} heads of keys")),
    )?;
    let mut masks = Vec::new();
    if let Some(mask) = s.get(3) {
        let (ty, keys) = (type_of(b, mask)?, b.ty(k)?.shape[2].clone());
        // A mask narrower than the keys would have to be padded.
        let whole = ty.shape.last().is_some_and(|d| d.is_one() || *d == keys);
        refuse_if(!whole, unfit(format!("has a mask of type {ty} for {keys} keys")))?;
        masks.push(if ty.dtype == DType::Bool { Mask::Allowed(mask) } else { Mask::Bias(mask) });
    }
    let scores = Scores {
        scale: s.op.attrs.get("scale").map_or(1.0 / (depth as f64).sqrt(), |_| s.op.float("scale") as f64),
        softcap: s.op.float("softcap") as f64,
        causal: s.op.int("is_causal") == 1,
        masks,
        precision: DType::from_onnx(s.op.int("softmax_precision") as i32),
    };
    let k = repeat_heads(b, k, h / groups)?;
    let v = repeat_heads(b, v, h / groups)?;
    let y = attend(b, q, k, v, &scores)?;
    if flat { Ok(vec![join_heads(b, y)?]) } else { Ok(vec![y]) }
}

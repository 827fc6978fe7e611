//! `LinearAttention` (opset 27): a state of keys times values, which each token decays, corrects and reads.
//!
//! ```text
//! S ← exp(gₜ) S                       gated, gated_delta
//! vₜ ← βₜ (vₜ − Sᵀ kₜ)                delta, gated_delta
//! S ← S + kₜ vₜᵀ      oₜ = scale · qₜᵀ S
//! ```

use super::*;

/// Most tokens of a sequence that is unrolled.
const LONGEST: i64 = 256;

pub(super) const LINEAR_ATTENTION: Row = Row {
    name: "LinearAttention",
    infer: |cx| {
        let (q, k, v) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
        cx.require([q, k, v].iter().all(|t| t.rank() == 3), || format!("{q}, {k} and {v} are not all of rank 3"))?;
        let batch = |t: &TensorType| t.shape[0].known().zip(q.shape[0].known()).is_none_or(|(own, of_q)| own == of_q);
        cx.require(batch(k) && batch(v), || format!("{q}, {k} and {v} are not of one batch"))?;
        let (q_heads, heads) = (cx.op.int("q_num_heads"), cx.op.int("kv_num_heads"));
        cx.require(heads > 0 && q_heads > 0, || "`q_num_heads` or `kv_num_heads` is missing".into())?;
        let width = |t: &TensorType| t.shape[2].div_exact(&Dim::from(heads)).unwrap_or_else(|| unknown_dim("width"));
        let mut out = q.clone();
        out.shape[2] = &width(v) * &Dim::from(q_heads);
        let dtype = if (cx.present)(3) { cx.ty(3)?.dtype } else { q.dtype };
        let state = TensorType::new(dtype, vec![q.shape[0].clone(), Dim::from(heads), width(k), width(v)]);
        Ok(vec![out, state])
    },
    derivative: Derivative::Decompose("MatMul, Exp, Mul, Add for each token; up to 256 tokens, of known number"),
    decompose: |b, s| {
        let (q, k, v) = (s.need(0)?, s.need(1)?, s.need(2)?);
        let (q_heads, heads) = (s.op.int("q_num_heads"), s.op.int("kv_num_heads"));
        refuse_if(
            heads < 1 || q_heads % heads != 0,
            unfit(format!("has {q_heads} heads of queries, no multiple of its {heads} heads of keys")),
        )?;
        let tokens = extent(b, q, 1)?;
        refuse_if(!(1..=LONGEST).contains(&tokens), unfit(format!("has {tokens} tokens; up to {LONGEST} are written out")))?;
        let (depth, width) = (extent(b, k, 2)? / heads, extent(b, v, 2)? / heads);
        let own = type_of(b, q)?;
        let batch = own.shape[0].clone();
        let wide = if matches!(own.dtype, DType::F16 | DType::BF16) { DType::F32 } else { own.dtype };
        // One token of an operand, as [batch, heads, rows, columns].
        let at = |b: &mut Builder, x: ValueId, t: i64, dims: [i64; 3]| -> Result<ValueId, Why> {
            let token = b.slice(x, 1, t, t + 1)?;
            let token = b.cast(token, wide)?;
            let shape: Vec<Dim> = [batch.clone()].into_iter().chain(dims.map(Dim::from)).collect();
            Ok(b.reshape(token, &[0, dims[0], dims[1], dims[2]], &shape)?)
        };
        let (gated, delta) = match s.op.str("update_rule") {
            "linear" => (false, false),
            "gated" => (true, false),
            "delta" => (false, true),
            "gated_delta" => (true, true),
            other => return Err(Why::Attribute { attribute: "update_rule", value: other.into() }),
        };
        let scale = match s.op.float("scale") {
            0.0 => 1.0 / (depth as f64).sqrt(),
            scale => scale.into(),
        };
        let mut state = s.get(3).map(|v| b.cast(v, wide)).transpose()?;
        let mut read = Vec::new();
        for t in 0..tokens {
            let key = at(b, k, t, [heads, depth, 1])?;
            let mut value = at(b, v, t, [heads, 1, width])?;
            if let (true, Some(old)) = (gated, state) {
                let decay = s.need(4)?;
                let rows = if extent(b, decay, 2)? == heads { 1 } else { depth };
                let decay = at(b, decay, t, [heads, rows, 1])?;
                let kept = b.op("Exp", &[decay])?;
                state = Some(b.mul(old, kept)?);
            }
            if delta {
                if let Some(old) = state {
                    let row = at(b, k, t, [heads, 1, depth])?;
                    let known = b.matmul(row, old)?;
                    value = b.sub(value, known)?;
                }
                let rate = s.need(5)?;
                let groups = extent(b, rate, 2)?;
                let rate = at(b, rate, t, [groups, 1, 1])?;
                value = b.mul(value, rate)?;
            }
            let written = b.mul(key, value)?;
            let new = state.map_or(Ok(written), |old| b.add(old, written))?;
            state = Some(new);
            let query = at(b, q, t, [heads, q_heads / heads, depth])?;
            let query = b.scale(query, scale)?;
            let out = b.matmul(query, new)?;
            let shape = [batch.clone(), Dim::from(1), Dim::from(q_heads * width)];
            read.push(b.reshape(out, &[0, 1, q_heads * width], &shape)?);
        }
        let mut results = Vec::new();
        if let (true, Some(last)) = (s.reads(1), state) {
            let dtype = s.get(3).map_or(Ok(own.dtype), |v| type_of(b, v).map(|t| t.dtype))?;
            results.push(b.cast(last, dtype)?);
        }
        let all = if let [only] = read[..] { only } else { b.concat(&read, 1)? };
        results.insert(0, b.cast(all, own.dtype)?);
        Ok(results)
    },
    samples: || {
        let of = |rule: &str, groups: i64, rest: Vec<SampleOperand>| {
            let attrs = Attrs::new().with("q_num_heads", 2 * groups).with("kv_num_heads", 2).with("update_rule", rule);
            let mut operands = vec![floats(&[2, 3, 8 * groups]), floats(&[2, 3, 8]), floats(&[2, 3, 6])];
            operands.extend(rest);
            sample(attrs, operands).at(27).results(2)
        };
        let (past, rate) = (floats(&[2, 2, 4, 3]), |last: i64| floats_in(&[2, 3, last], 0.2, 0.8));
        let decay = |last: i64| floats_in(&[2, 3, last], -1.0, -0.1);
        vec![
            of("linear", 1, vec![]),
            of("gated", 2, vec![past.clone(), decay(8)]),
            of("delta", 1, vec![SampleOperand::Missing, SampleOperand::Missing, rate(2)]),
            of("gated_delta", 1, vec![past, decay(2), rate(1)]),
        ]
    },
    ..ROW
};

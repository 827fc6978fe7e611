//! `Attention` and `RotaryEmbedding` (opset 23): whole blocks in one operator, which a pass writes as plain ones before anything
//! is differentiated.

use super::sample::floats;
use super::*;

pub(super) struct Attention;
pub(super) struct RotaryEmbedding;

impl OpRule for Attention {
    fn name(&self) -> &'static str {
        "Attention"
    }
    fn since(&self) -> i64 {
        23
    }
    /// [batch, heads, queries, width], or [batch, queries, heads · width]. The cache results' types are left open.
    fn infer(&self, cx: &Infer) -> Types {
        let (q, v) = (cx.ty(0)?, cx.ty(2)?);
        cx.require(q.rank() == v.rank() && (3..=4).contains(&q.rank()), || {
            format!("{q} and {v} are no queries and values")
        })?;
        let mut out = q.clone();
        if q.rank() == 4 {
            out.shape[3] = v.shape[3].clone();
            return Ok(vec![out]);
        }
        let heads = |name: &str| {
            let n = cx.attrs().int(name, 0);
            if n > 0 { Ok(Dim::from(n)) } else { Err(TypeError(format!("`{name}` is missing"))) }
        };
        let width = v.shape[2].div_exact(&heads("kv_num_heads")?).unwrap_or_else(|| unknown_dim("width"));
        out.shape[2] = &width * &heads("q_num_heads")?;
        Ok(vec![out])
    }
    fn derivative(&self) -> Derivative {
        Derivative::None("attention in one operator is not differentiated: decompose first")
    }
    fn samples(&self) -> Vec<Sample> {
        let heads = Attrs::new().with("q_num_heads", 4).with("kv_num_heads", 2);
        let of = |attrs: Attrs, q: &[i64], k: &[i64], v: &[i64]| {
            Sample::of("Attention", attrs, vec![floats(q), floats(k), floats(v)]).at(23).shape_only()
        };
        vec![of(Attrs::new(), &[2, 3, 4, 8], &[2, 3, 5, 8], &[2, 3, 5, 6]), of(heads, &[2, 4, 32], &[2, 5, 16], &[2, 5, 12])]
    }
}

impl OpRule for RotaryEmbedding {
    fn name(&self) -> &'static str {
        "RotaryEmbedding"
    }
    fn since(&self) -> i64 {
        23
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::None("rotary embedding in one operator is not differentiated: decompose first")
    }
    fn samples(&self) -> Vec<Sample> {
        let operands = vec![floats(&[2, 3, 4, 8]), floats(&[2, 4, 4]), floats(&[2, 4, 4])];
        vec![Sample::of("RotaryEmbedding", Attrs::new(), operands).at(23).shape_only()]
    }
}

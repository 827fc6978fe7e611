//! Fused operators of ONNX Runtime's own domain, as its optimiser leaves them in saved models. They have shape rules only: a pass
//! writes them as standard operators before anything is differentiated.

use super::matmul::product_type;
use super::sample::floats;
use super::*;

const DOMAIN: &str = "com.microsoft";
const REASON: &str = "a contrib operator: decomposed first";

fn sample(name: &str, attrs: Attrs, operands: Vec<SampleOperand>) -> Sample {
    let mut s = Sample::of(name, attrs, operands).shape_only();
    s.op.domain = DOMAIN.to_string();
    s
}

/// Rules of these operators: the name, the types of the results, the samples.
macro_rules! fused {
    ($($rule:ident $infer:expr, $samples:expr;)*) => {$(
        pub(super) struct $rule;

        impl OpRule for $rule {
            fn name(&self) -> &'static str {
                stringify!($rule)
            }
            fn domain(&self) -> &'static str {
                DOMAIN
            }
            fn infer(&self, cx: &Infer) -> Types {
                $infer(cx)
            }
            fn derivative(&self) -> Derivative {
                Derivative::None(REASON)
            }
            fn samples(&self) -> Vec<Sample> {
                $samples
            }
        }
    )*};
}

fused! {
    FusedMatMul arranged_product, {
        let attrs = |a: i64, b: i64| Attrs::new().with("transA", a).with("transB", b).with("alpha", 0.5_f32);
        vec![
            sample("FusedMatMul", attrs(0, 1), vec![floats(&[2, 3, 4]), floats(&[2, 5, 4])]),
            sample("FusedMatMul", attrs(1, 0), vec![floats(&[2, 4, 3]), floats(&[4, 5])]),
        ]
    };
    FastGelu like_first, vec![sample("FastGelu", Attrs::new(), vec![floats(&[2, 3, 4]), floats(&[4])])];
    QuickGelu like_first, vec![sample("QuickGelu", Attrs::new(), vec![floats(&[2, 3, 4])])];
    BiasGelu like_first, vec![sample("BiasGelu", Attrs::new(), vec![floats(&[2, 3, 4]), floats(&[4])])];
    SkipLayerNormalization skipped, {
        let operands = vec![floats(&[2, 3, 4]), floats(&[2, 3, 4]), floats(&[4]), floats(&[4])];
        vec![sample("SkipLayerNormalization", Attrs::new(), operands)]
    };
    EmbedLayerNormalization embedded, {
        let ids = |n: i64| SampleOperand::Ints32 { dims: vec![2, 3], values: (0..6).map(|i| i % n).collect() };
        // The runtime wants to know the tables' extents.
        let table = |dims: &[i64]| {
            let values = (0..dims.iter().product::<i64>()).map(|i| (i * 7 % 11) as f32 / 5.0 - 1.0).collect();
            SampleOperand::FloatConstant { dims: dims.to_vec(), values }
        };
        let tables = vec![table(&[6, 4]), table(&[3, 4]), table(&[2, 4]), table(&[4]), table(&[4])];
        vec![sample("EmbedLayerNormalization", Attrs::new(), [vec![ids(6), ids(2)], tables, vec![ids(2)]].concat()).results(2)]
    };
    Attention packed_attention, {
        let attrs = |sizes: &[i64]| Attrs::new().with("num_heads", 2).with("qkv_hidden_sizes", sizes.to_vec());
        let operands = |width: i64| vec![floats(&[2, 3, 8]), floats(&[8, width]), floats(&[width])];
        vec![
            sample("Attention", Attrs::new().with("num_heads", 2), operands(24)),
            sample("Attention", attrs(&[8, 8, 4]), operands(20)),
        ]
    };
    MultiHeadAttention multi_head_attention, {
        let attrs = Attrs::new().with("num_heads", 2);
        vec![sample("MultiHeadAttention", attrs, vec![floats(&[2, 3, 8]), floats(&[2, 5, 8]), floats(&[2, 5, 4])])]
    };
    Gelu like_first, vec![sample("Gelu", Attrs::new(), vec![floats(&[2, 3, 4])])];
    SkipSimplifiedLayerNormalization skipped, {
        let operands = vec![floats(&[2, 3, 4]), floats(&[2, 3, 4]), floats(&[4])];
        vec![sample("SkipSimplifiedLayerNormalization", Attrs::new(), operands)]
    };
    FusedConv |cx: &Infer| super::conv::Conv.infer(cx), {
        let operands = || vec![floats(&[2, 3, 6, 6]), floats(&[4, 3, 3, 3]), floats(&[4])];
        let leaky = Attrs::new().with("activation", "LeakyRelu").with("activation_params", vec![0.1_f32]);
        vec![
            sample("FusedConv", Attrs::new().with("activation", "Relu").with("pads", vec![1, 1, 1, 1]), operands()),
            sample("FusedConv", leaky, operands()),
        ]
    };
    FusedGemm |cx: &Infer| super::gemm::Gemm.infer(cx), {
        let attrs = Attrs::new().with("activation", "Tanh").with("transB", 1);
        vec![sample("FusedGemm", attrs, vec![floats(&[2, 3]), floats(&[4, 3]), floats(&[4])])]
    };
}

/// `transBatch…` moves the first axis to the second last place, then `trans…` swaps the last two.
fn arranged_product(cx: &Infer) -> Types {
    let arranged = |i: usize, trans: &str, batch: &str| -> Result<TensorType, TypeError> {
        let mut ty = cx.ty(i)?.clone();
        let rank = ty.rank();
        if rank < 2 {
            return Ok(ty);
        }
        if cx.attrs().int(batch, 0) != 0 {
            ty.shape[..rank - 1].rotate_left(1);
        }
        if cx.attrs().int(trans, 0) != 0 {
            ty.shape.swap(rank - 1, rank - 2);
        }
        Ok(ty)
    };
    let (a, b) = (arranged(0, "transA", "transBatchA")?, arranged(1, "transB", "transBatchB")?);
    Ok(vec![product_type(&a, &b)?])
}

/// The normalised embedding, the number of unmasked tokens, the embedding.
fn embedded(cx: &Infer) -> Types {
    let (ids, words) = (cx.ty(0)?, cx.ty(2)?);
    cx.require(ids.rank() == 2 && words.rank() == 2, || format!("{ids} and {words} are no ids and their table"))?;
    let shape = vec![ids.shape[0].clone(), ids.shape[1].clone(), words.shape[1].clone()];
    let y = TensorType::new(words.dtype, shape);
    Ok(vec![y.clone(), TensorType::new(ids.dtype, vec![ids.shape[0].clone()]), y])
}

/// Weights of queries, keys and values are one matrix.
fn packed_attention(cx: &Infer) -> Types {
    let (x, w) = (cx.ty(0)?, cx.ty(1)?);
    cx.require(x.rank() == 3 && w.rank() == 2, || format!("{x} and weights {w} are no attention"))?;
    let sizes = cx.attrs().ints("qkv_hidden_sizes").and_then(|sizes| sizes.get(2).copied());
    let width = match sizes {
        Some(values) => Some(Dim::from(values)),
        None => w.shape[1].div_exact(&Dim::from(3)),
    };
    let width = width.ok_or_else(|| TypeError(format!("weights {w} are not of three equal parts")))?;
    Ok(vec![TensorType::new(x.dtype, vec![x.shape[0].clone(), x.shape[1].clone(), width])])
}

/// Queries [batch, length, width], or packed with keys and values [batch, length, heads, 3, size].
fn multi_head_attention(cx: &Infer) -> Types {
    let q = cx.ty(0)?;
    let width = match (q.rank(), (cx.present)(2)) {
        (5, _) => &q.shape[2] * &q.shape[4],
        (3, true) if cx.ty(2)?.rank() == 3 => cx.ty(2)?.shape[2].clone(),
        (3, true) if cx.ty(2)?.rank() == 4 => &cx.ty(2)?.shape[1] * &cx.ty(2)?.shape[3],
        (3, false) => q.shape[2].clone(),
        _ => return Err(TypeError(format!("queries of type {q} are not read"))),
    };
    Ok(vec![TensorType::new(q.dtype, vec![q.shape[0].clone(), q.shape[1].clone(), width])])
}

/// Normalised sum, mean, inverse deviation, sum.
fn skipped(cx: &Infer) -> Types {
    let x = cx.ty(0)?;
    let mut statistics = TensorType::new(DType::F32, x.shape.clone());
    if let Some(last) = statistics.shape.last_mut() {
        *last = Dim::from(1);
    }
    Ok(vec![x.clone(), statistics.clone(), statistics, x.clone()])
}

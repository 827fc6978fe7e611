//! Fused operators of ONNX Runtime (domain `com.microsoft`) as plain ones.
//!
//! Where the runtime fuses a bias or a skip into an operator, its plain form adds it first. Attention weights packed as one
//! matrix stay one product, whose result is split.

use super::attention::{self, Mask, Scores, attend, join_heads, split_heads, split_last};
use super::decompose::{gated, gelu_exact, gelu_tanh, layer_norm, root_mean_square};
use super::{Replaced, Rule, Source};
use crate::ir::{Attrs, DType, Dim, Op, ValueId};
use crate::ops::build::{BuildError, Builder};

/// The operators that have a rule here, and what they become.
pub(super) const DECOMPOSED: &[(&str, &str)] = &[
    ("Attention", "MatMul, Softmax, MatMul; without a key cache"),
    ("BiasGelu", "Add, Gelu"),
    ("EmbedLayerNormalization", "Gather, Add, LayerNormalization"),
    ("FastGelu", "Mul, Tanh"),
    ("FusedConv", "Conv, Add, its activation"),
    ("FusedGemm", "Gemm, its activation"),
    ("FusedMatMul", "Transpose, MatMul, Mul"),
    ("Gelu", "Erf, Mul"),
    ("LayerNormalization", "the standard operator"),
    ("MultiHeadAttention", "MatMul, Softmax, MatMul; without a key cache"),
    ("QuickGelu", "Sigmoid, Mul"),
    ("RotaryEmbedding", "Mul, Add"),
    ("SimplifiedLayerNormalization", "ReduceMean, Sqrt, Div, Mul"),
    ("SkipLayerNormalization", "Add, LayerNormalization"),
    ("SkipSimplifiedLayerNormalization", "Add, ReduceMean, Sqrt, Div, Mul"),
    ("TransposeMatMul", "Transpose, MatMul, Mul"),
];

/// The rule of an operator. A few of these the runtime also accepts in the standard domain.
pub(super) fn rule_of(op: &Op) -> Option<Rule> {
    let plain = match op.name.as_str() {
        "SimplifiedLayerNormalization" if op.domain.is_empty() => Some(simplified as Rule),
        _ => None,
    };
    if op.domain != "com.microsoft" {
        return plain;
    }
    Some(match op.name.as_str() {
        "FusedMatMul" | "TransposeMatMul" => fused_matmul,
        "FusedConv" => fused_conv,
        "FusedGemm" => fused_gemm,
        "Gelu" => |b, s| one(gelu_exact(b, s.need(0)?)),
        "QuickGelu" => |b, s| one(gated(b, s.need(0)?, s.attrs.float("alpha", 1.702) as f64)),
        "BiasGelu" => |b, s| {
            let x = b.add(s.need(0)?, s.need(1)?)?;
            one(gelu_exact(b, x))
        },
        "FastGelu" => |b, s| {
            let x = with_bias(b, s.need(0)?, s.get(1))?;
            one(gelu_tanh(b, x))
        },
        "LayerNormalization" => |b, s| {
            if s.reads_from(1) || s.attrs.int("axis", -1) != -1 {
                return Ok(None);
            }
            one(layer_norm(b, s.need(0)?, s.need(1)?, s.get(2), s.attrs.float("epsilon", 1e-5)))
        },
        "SimplifiedLayerNormalization" => simplified,
        "SkipLayerNormalization" => skip_layer_normalization,
        "SkipSimplifiedLayerNormalization" => skip_simplified,
        "EmbedLayerNormalization" => embed_layer_normalization,
        "RotaryEmbedding" => rotary,
        "Attention" => packed_attention,
        "MultiHeadAttention" => multi_head_attention,
        _ => return None,
    })
}

#[test]
fn every_listed_operator_has_a_rule() {
    let missing =
        DECOMPOSED.iter().filter(|(name, _)| rule_of(&Op::in_domain("com.microsoft", name, Attrs::new())).is_none());
    assert_eq!(missing.count(), 0);
}

fn one(v: Result<ValueId, BuildError>) -> Replaced {
    Ok(Some(vec![v?]))
}

fn with_bias(b: &mut Builder, x: ValueId, bias: Option<ValueId>) -> Result<ValueId, BuildError> {
    bias.map_or(Ok(x), |bias| b.add(x, bias))
}

/// α · op(A) op(B), where op transposes the last two axes.
fn fused_matmul(b: &mut Builder, s: &Source) -> Replaced {
    if s.attrs.int("transBatchA", 0) == 1 || s.attrs.int("transBatchB", 0) == 1 {
        return Ok(None);
    }
    let operand = |b: &mut Builder, i: usize, attr: &str| {
        let v = s.need(i)?;
        if s.attrs.int(attr, 0) == 1 && b.ty(v)?.rank() > 1 { b.transpose_last(v) } else { Ok(v) }
    };
    let (x, y) = (operand(b, 0, "transA")?, operand(b, 1, "transB")?);
    let product = b.matmul(x, y)?;
    one(b.scale(product, s.attrs.float("alpha", 1.0) as f64))
}

/// The activation that is fused into an operator; `None` where it has no form here.
fn activated(b: &mut Builder, x: ValueId, name: &str, parameters: &[f32]) -> Replaced {
    let number = |i: usize, default: f32| parameters.get(i).copied().unwrap_or(default);
    let attrs = match name {
        "" => return Ok(Some(vec![x])),
        "Relu" | "Sigmoid" | "Tanh" => Attrs::new(),
        "LeakyRelu" => Attrs::new().with("alpha", number(0, 0.01)),
        "HardSigmoid" => Attrs::new().with("alpha", number(0, 0.2)).with("beta", number(1, 0.5)),
        "Clip" if b.opset() >= 11 => {
            let dtype = b.ty(x)?.dtype;
            let (low, high) = (number(0, f32::MIN), number(1, f32::MAX));
            let (low, high) = (b.scalar(dtype, low as f64), b.scalar(dtype, high as f64));
            return one(b.op("Clip", &[x, low, high]));
        }
        _ => return Ok(None),
    };
    one(b.op_with(name, attrs, &[x]))
}

/// The attributes of an operator without those of what is fused into it.
fn without_activation(s: &Source) -> Attrs {
    let mut attrs = s.attrs.clone();
    attrs.0.retain(|name, _| !name.starts_with("activation"));
    attrs
}

/// Operands: x, weight, bias, and what is added before the activation.
fn fused_conv(b: &mut Builder, s: &Source) -> Replaced {
    let operands = [Some(s.need(0)?), Some(s.need(1)?), s.get(2)];
    let mut y = b.node(Op::new("Conv", without_activation(s)), &operands)?[0];
    if let Some(z) = s.get(3) {
        y = b.add(y, z)?;
    }
    let parameters = s.attrs.floats("activation_params").map(<[f32]>::to_vec).unwrap_or_default();
    activated(b, y, s.attrs.str("activation", ""), &parameters)
}

fn fused_gemm(b: &mut Builder, s: &Source) -> Replaced {
    let operands = [Some(s.need(0)?), Some(s.need(1)?), s.get(2)];
    let y = b.node(Op::new("Gemm", without_activation(s)), &operands)?[0];
    let given = |name: &str| s.attrs.get(name).map(|_| s.attrs.float(name, 0.0));
    let parameters: Vec<f32> = [given("activation_alpha"), given("activation_beta")].into_iter().flatten().collect();
    activated(b, y, s.attrs.str("activation", ""), &parameters)
}

fn simplified(b: &mut Builder, s: &Source) -> Replaced {
    if s.reads_from(1) {
        return Ok(None);
    }
    let (axis, epsilon) = (s.attrs.int("axis", -1), s.attrs.float("epsilon", 1e-5));
    one(root_mean_square(b, s.need(0)?, s.need(1)?, axis, epsilon, s.attrs.int("stash_type", 1)))
}

/// The normalised operand, then mean, deviation (of training only) and the sum that was normalised.
fn skip_results(s: &Source, y: ValueId, sum: ValueId) -> Replaced {
    if s.live.iter().skip(1).take(2).any(|l| *l) {
        return Ok(None);
    }
    Ok(Some(vec![y, sum, sum, sum]))
}

fn skip_layer_normalization(b: &mut Builder, s: &Source) -> Replaced {
    let sum = b.add(s.need(0)?, s.need(1)?)?;
    let sum = with_bias(b, sum, s.get(4))?;
    let y = layer_norm(b, sum, s.need(2)?, s.get(3), s.attrs.float("epsilon", 1e-12))?;
    skip_results(s, y, sum)
}

fn skip_simplified(b: &mut Builder, s: &Source) -> Replaced {
    let sum = b.add(s.need(0)?, s.need(1)?)?;
    let sum = with_bias(b, sum, s.get(3))?;
    let y = root_mean_square(b, sum, s.need(2)?, -1, s.attrs.float("epsilon", 1e-12), 1)?;
    skip_results(s, y, sum)
}

/// Operands: ids, segments, words, positions, segment table, scale, bias, mask, position ids. Results: the normalised
/// embedding, the number of unmasked tokens, the sum before normalisation.
fn embed_layer_normalization(b: &mut Builder, s: &Source) -> Replaced {
    let ids = s.need(0)?;
    let rows = Attrs::new().with("axis", 0);
    let words = b.op_with("Gather", rows.clone(), &[s.need(2)?, ids])?;
    let at = match s.get(8) {
        Some(at) => at,
        None => attention::positions(b, ids, 1)?,
    };
    let places = b.op_with("Gather", rows.clone(), &[s.need(3)?, at])?;
    let mut sum = b.add(words, places)?;
    if let (Some(segments), Some(table)) = (s.get(1), s.get(4)) {
        let kinds = b.op_with("Gather", rows, &[table, segments])?;
        sum = b.add(sum, kinds)?;
    }
    let counts = match s.get(7) {
        _ if !s.live.get(1).copied().unwrap_or(false) => sum,
        Some(mask) => b.reduce_sum(mask, &[1], false)?,
        None => return Ok(None),
    };
    let y = layer_norm(b, sum, s.need(5)?, s.get(6), s.attrs.float("epsilon", 1e-12))?;
    Ok(Some(vec![y, counts, sum]))
}

/// Operands: x, positions (one offset, or one for each token), cosines, sines.
fn rotary(b: &mut Builder, s: &Source) -> Replaced {
    if s.attrs.int("is_packed_batching", 0) == 1 || s.attrs.float("scale", 1.0) != 1.0 {
        return Ok(None);
    }
    let x = s.need(0)?;
    let axis = if b.ty(x)?.rank() == 4 { 2 } else { 1 };
    let Some(at) = attention::positions_of(b, s.need(1)?, x, axis)? else { return Ok(None) };
    attention::rotate(b, s, x, s.need(2)?, s.need(3)?, Some(at))
}

/// What both attention operators share: scale, causality, masks of keys and a bias.
fn scores(
    b: &mut Builder,
    s: &Source,
    [q, k]: [ValueId; 2],
    mask: Option<ValueId>,
    bias: Option<ValueId>,
) -> Result<Option<Scores>, BuildError> {
    let (tq, tk) = (b.ty(q)?, b.ty(k)?);
    let Some(depth) = tq.shape[3].known() else { return Ok(None) };
    let given = s.attrs.float("scale", 0.0) as f64;
    let mut masks = Vec::new();
    if let Some(mask) = mask {
        let ty = b.ty(mask)?;
        let filter = s.attrs.float("mask_filter_value", -10000.0) as f64;
        let same = |d: &Dim, e: &Dim| d == e || d.known().is_none() || e.known().is_none();
        let axes: &[i64] = match ty.rank() {
            2 if same(&ty.shape[1], &tk.shape[2]) => &[1, 2],
            3 if same(&ty.shape[1], &tq.shape[2]) && same(&ty.shape[2], &tk.shape[2]) => &[1],
            // Lengths: the keys from each on are padding.
            1 if ty.shape[0] == tq.shape[0] => {
                let lengths = b.unsqueeze(mask, &[1])?;
                let lengths = b.cast(lengths, DType::I64)?;
                let places = attention::positions(b, k, 2)?;
                let allowed = b.op("Less", &[places, lengths])?;
                let bias = filtered(b, allowed, tq.dtype, filter)?;
                masks.push(Mask::Bias(b.unsqueeze(bias, &[1, 2])?));
                &[]
            }
            _ => return Ok(None),
        };
        if !axes.is_empty() {
            let wide = b.unsqueeze(mask, axes)?;
            let bias = filtered(b, wide, tq.dtype, filter)?;
            masks.push(Mask::Bias(bias));
        }
    }
    masks.extend(bias.map(Mask::Bias));
    Ok(Some(Scores {
        scale: if given == 0.0 { 1.0 / (depth as f64).sqrt() } else { given },
        causal: s.attrs.int("unidirectional", 0) == 1,
        masks,
        ..Scores::default()
    }))
}

/// 0 where a mask of zeros and ones is 1, the filter's value where it is 0.
fn filtered(b: &mut Builder, mask: ValueId, dtype: DType, filter: f64) -> Result<ValueId, BuildError> {
    let ones = b.cast(mask, dtype)?;
    let off = b.shift(ones, -1.0)?;
    b.scale(off, -filter)
}

/// Operands: x, packed weights, packed bias, mask, past, bias of the scores.
fn packed_attention(b: &mut Builder, s: &Source) -> Replaced {
    let rotates = s.attrs.int("do_rotary", 0) == 1;
    if s.get(4).is_some() || s.get(6).is_some() || rotates || s.reads_from(1) {
        return Ok(None);
    }
    let (x, w) = (s.need(0)?, s.need(1)?);
    let heads = s.attrs.int("num_heads", 0);
    let Some(width) = b.ty(w)?.shape.get(1).and_then(Dim::known) else { return Ok(None) };
    let sizes = match s.attrs.ints("qkv_hidden_sizes") {
        Some(sizes) if sizes.len() == 3 && sizes.iter().sum::<i64>() == width => sizes.to_vec(),
        Some(_) => return Ok(None),
        None => vec![width / 3; 3],
    };
    let packed = b.matmul(x, w)?;
    let packed = with_bias(b, packed, s.get(2))?;
    let parts = split_last(b, packed, &sizes)?;
    let heads_of = |b: &mut Builder, i: usize| split_heads(b, parts[i], heads);
    let (Some(q), Some(k), Some(v)) = (heads_of(b, 0)?, heads_of(b, 1)?, heads_of(b, 2)?) else { return Ok(None) };
    let Some(how) = scores(b, s, [q, k], s.get(3), s.get(5))? else { return Ok(None) };
    let y = attend(b, q, k, v, &how)?;
    Ok(join_heads(b, y)?.map(|y| vec![y]))
}

/// Operands: query, key, value, packed bias, mask of keys, bias of the scores, past keys and values.
fn multi_head_attention(b: &mut Builder, s: &Source) -> Replaced {
    if s.operands.iter().skip(6).any(Option::is_some) || s.reads_from(1) {
        return Ok(None);
    }
    let heads = s.attrs.int("num_heads", 0);
    let (Some(q), Some(k), Some(v)) = (s.get(0), s.get(1), s.get(2)) else { return Ok(None) };
    let types = [b.ty(q)?, b.ty(k)?, b.ty(v)?];
    let mut parts = [q, k, v];
    if let Some(bias) = s.get(3) {
        let widths: Option<Vec<i64>> = types.iter().map(|t| if t.rank() == 3 { t.shape[2].known() } else { None }).collect();
        let Some(widths) = widths else { return Ok(None) };
        let biases = split_last(b, bias, &widths)?;
        for (part, bias) in parts.iter_mut().zip(biases) {
            *part = b.add(*part, bias)?;
        }
    }
    if types[0].rank() != 3 {
        return Ok(None);
    }
    let heads_of = |b: &mut Builder, i: usize| split_heads(b, parts[i], heads);
    let (Some(q), Some(k), Some(v)) = (heads_of(b, 0)?, heads_of(b, 1)?, heads_of(b, 2)?) else { return Ok(None) };
    let Some(how) = scores(b, s, [q, k], s.get(4), s.get(5))? else { return Ok(None) };
    let y = attend(b, q, k, v, &how)?;
    Ok(join_heads(b, y)?.map(|y| vec![y]))
}

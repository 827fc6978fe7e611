//! Operators of the standard domain that came after opset 18 (or that no engine has a kernel for), as plain ones.
//!
//! ```text
//! Gelu                x/2 · (1 + erf(x/√2)), or its approximation by tanh
//! Swish               x · σ(α x)
//! RMSNormalization    x / √(mean(x²) + ε) · scale
//! GroupNormalization  (x − mean) / √(var + ε) over groups of channels, then scale and bias
//! Col2Im              a transposed convolution by the unit kernels
//! Attention, RotaryEmbedding: see `attention`; LSTM, GRU, RNN: see `recurrent`; DFT: see `fourier`; SequenceAt: see `sequence`
//! ```

use super::{Replaced, Rule, Source};
use super::{attention, fourier, recurrent, sequence};
use crate::ir::{Attrs, DType, Dim, Op, Tensor, ValueId};
use crate::ops::build::{Builder, Built};

/// The operators that have a rule here, and what they become.
pub(super) const DECOMPOSED: &[(&str, &str)] = &[
    ("Attention", "MatMul, Softmax, MatMul; without a key cache"),
    ("Col2Im", "ConvTranspose by the unit kernels; of known sizes"),
    ("DFT", "MatMul with tables of cosines and sines; up to 2048 places, of known number"),
    ("GRU", "unrolled: MatMul, Sigmoid, Tanh; up to 256 steps, of known number"),
    ("Gelu", "Erf or Tanh, Mul"),
    ("GroupNormalization", "ReduceMean, Sub, Sqrt, Div, Mul, Add"),
    ("LSTM", "unrolled: MatMul, Sigmoid, Tanh; up to 256 steps, of known number"),
    ("RMSNormalization", "ReduceMean, Sqrt, Div, Mul"),
    ("RNN", "unrolled: MatMul, Tanh; up to 256 steps, of known number"),
    ("RotaryEmbedding", "Mul, Add"),
    ("SequenceAt", "Slice; of a `SplitToSequence` or `SequenceConstruct` at a constant place"),
    ("Swish", "Sigmoid, Mul"),
];

/// The rule of an operator, in the meaning it has in the source's operator set.
pub(super) fn rule_of(from: i64) -> impl Fn(&Op) -> Option<Rule> {
    move |op| {
        if !op.domain.is_empty() {
            return None;
        }
        Some(match op.name.as_str() {
            "Gelu" => gelu,
            "Swish" => swish,
            "RMSNormalization" | "SimplifiedLayerNormalization" => rms_normalization,
            "GroupNormalization" if from < 21 => group_normalization_18,
            "GroupNormalization" => group_normalization,
            "Attention" => attention::standard,
            "RotaryEmbedding" => attention::rotary,
            "LSTM" => recurrent::lstm,
            "GRU" => recurrent::gru,
            "RNN" => recurrent::rnn,
            "SequenceAt" => sequence::at,
            "Col2Im" => col2im,
            "DFT" if from < 20 => fourier::dft_17,
            "DFT" => fourier::dft,
            _ => return None,
        })
    }
}

/// x/2 · (1 + erf(x/√2)), spelled as engines recognise it.
pub(super) fn gelu_exact(b: &mut Builder, x: ValueId) -> Built {
    let dtype = b.ty(x)?.dtype;
    let root = b.scalar(dtype, std::f64::consts::SQRT_2);
    let u = b.div(x, root)?;
    let e = b.op("Erf", &[u])?;
    let s = b.shift(e, 1.0)?;
    let y = b.mul(x, s)?;
    b.scale(y, 0.5)
}

/// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
pub(super) fn gelu_tanh(b: &mut Builder, x: ValueId) -> Built {
    let c = (2.0 / std::f64::consts::PI).sqrt();
    let square = b.mul(x, x)?;
    let square = b.scale(square, c * 0.044715)?;
    let factor = b.shift(square, c)?;
    let inner = b.mul(x, factor)?;
    let t = b.op("Tanh", &[inner])?;
    let s = b.shift(t, 1.0)?;
    let y = b.mul(x, s)?;
    b.scale(y, 0.5)
}

/// x · σ(α x).
pub(super) fn gated(b: &mut Builder, x: ValueId, alpha: f64) -> Built {
    let scaled = b.scale(x, alpha)?;
    let gate = b.op("Sigmoid", &[scaled])?;
    b.mul(x, gate)
}

fn gelu(b: &mut Builder, s: &Source) -> Replaced {
    let x = s.need(0)?;
    let y = if s.attrs.str("approximate", "none") == "tanh" { gelu_tanh(b, x)? } else { gelu_exact(b, x)? };
    Ok(Some(vec![y]))
}

fn swish(b: &mut Builder, s: &Source) -> Replaced {
    let y = gated(b, s.need(0)?, s.attrs.float("alpha", 1.0) as f64)?;
    Ok(Some(vec![y]))
}

/// The sum of overlapping blocks: each block's elements are the channels of a transposed convolution, whose kernels put every
/// one at its own place.
fn col2im(b: &mut Builder, s: &Source) -> Replaced {
    let x = s.need(0)?;
    let ty = b.ty(x)?;
    let numbers = |b: &Builder, i: usize| s.get(i).and_then(|v| b.graph.constant(v)?.to_i64().ok());
    let (Some(image), Some(block)) = (numbers(b, 1), numbers(b, 2)) else { return Ok(None) };
    let rank = block.len();
    let of = |name: &str, each: i64, count: usize| s.attrs.ints(name).map_or(vec![each; count], <[i64]>::to_vec);
    let (strides, dilations, pads) = (of("strides", 1, rank), of("dilations", 1, rank), of("pads", 0, 2 * rank));
    let size: i64 = block.iter().product();
    let [_, channels, places] = ty.shape.as_slice() else { return Ok(None) };
    let (Some(channels), Some(places)) = (channels.known(), places.known()) else { return Ok(None) };
    let listed = image.len() == rank && strides.len() == rank && dilations.len() == rank && pads.len() == 2 * rank;
    if !listed || size < 1 || channels % size != 0 || strides.iter().any(|s| *s < 1) {
        return Ok(None);
    }
    let (channels, spans) = (channels / size, |i: usize| dilations[i] * (block[i] - 1) + 1 - pads[i] - pads[i + rank]);
    let counts: Vec<i64> = (0..rank).map(|i| (image[i] - spans(i)) / strides[i] + 1).collect();
    if counts.iter().any(|n| *n < 1) || counts.iter().product::<i64>() != places {
        return Ok(None);
    }
    let rest: Vec<i64> = (0..rank).map(|i| image[i] - spans(i) - strides[i] * (counts[i] - 1)).collect();
    let dims =
        |first: &[Dim], more: &[i64]| first.iter().cloned().chain(more.iter().map(|n| Dim::from(*n))).collect::<Vec<_>>();
    let images = &ty.shape[0] * &Dim::from(channels);
    let flat = b.reshape(x, &[&[-1, size], counts.as_slice()].concat(), &dims(&[images, Dim::from(size)], &counts))?;
    let unit: Vec<f64> = (0..size * size).map(|i| f64::from(u8::from(i / size == i % size))).collect();
    let kernels = b.constant("unit", Tensor::floats(ty.dtype, &[&[size, 1], block.as_slice()].concat(), &unit));
    let attrs = Attrs::new()
        .with("strides", strides)
        .with("dilations", dilations)
        .with("pads", pads)
        .with("output_padding", rest)
        .with("kernel_shape", block);
    let y = b.op_with("ConvTranspose", attrs, &[flat, kernels])?;
    let y = b.reshape(
        y,
        &[&[-1, channels], image.as_slice()].concat(),
        &dims(&ty.shape[..1], &[&[channels], image.as_slice()].concat()),
    )?;
    Ok(Some(vec![y]))
}

/// The type statistics are computed in: single precision for narrower types.
fn wide(stash: i64, dtype: DType) -> DType {
    if stash == 1 && matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype }
}

fn rms_normalization(b: &mut Builder, s: &Source) -> Replaced {
    if s.reads_from(1) {
        return Ok(None);
    }
    let axis = s.attrs.int("axis", -1);
    let epsilon = s.attrs.float("epsilon", 1e-5);
    let y = root_mean_square(b, s.need(0)?, s.need(1)?, axis, epsilon, s.attrs.int("stash_type", 1))?;
    Ok(Some(vec![y]))
}

/// x / √(mean(x²) + ε) · scale over the axes from `axis` on.
pub(super) fn root_mean_square(b: &mut Builder, x: ValueId, scale: ValueId, axis: i64, epsilon: f32, stash: i64) -> Built {
    let ty = b.ty(x)?;
    let rank = ty.rank() as i64;
    let axis = if axis < 0 { axis + rank } else { axis };
    let axes: Vec<i64> = (axis..rank).collect();
    let exact = b.cast(x, wide(stash, ty.dtype))?;
    let square = b.mul(exact, exact)?;
    let mean = b.reduce("ReduceMean", square, &axes, true)?;
    let shifted = b.shift(mean, epsilon as f64)?;
    let root = b.sqrt(shifted)?;
    let unit = b.div(exact, root)?;
    let unit = b.cast(unit, ty.dtype)?;
    b.mul(unit, scale)
}

/// The form of opset 18: scale and bias of each group.
fn group_normalization_18(b: &mut Builder, s: &Source) -> Replaced {
    group(b, s, true)
}

/// The form of opset 21: scale and bias of each channel.
fn group_normalization(b: &mut Builder, s: &Source) -> Replaced {
    group(b, s, false)
}

fn group(b: &mut Builder, s: &Source, per_group: bool) -> Replaced {
    let (x, scale, bias) = (s.need(0)?, s.need(1)?, s.need(2)?);
    let groups = s.attrs.int("num_groups", 1);
    let ty = b.ty(x)?;
    let Some(channels) = ty.shape.get(1).and_then(Dim::known).filter(|c| groups > 0 && c % groups == 0) else {
        return Ok(None);
    };
    let rest = ty.shape[2..].iter().fold(Dim::from(channels / groups), |p, d| &p * d);
    let exact = b.cast(x, wide(s.attrs.int("stash_type", 1), ty.dtype))?;
    let grouped = b.reshape(exact, &[0, groups, -1], &[ty.shape[0].clone(), Dim::from(groups), rest])?;
    let mean = b.reduce("ReduceMean", grouped, &[2], true)?;
    let centred = b.sub(grouped, mean)?;
    let square = b.mul(centred, centred)?;
    let var = b.reduce("ReduceMean", square, &[2], true)?;
    let shifted = b.shift(var, s.attrs.float("epsilon", 1e-5) as f64)?;
    let deviation = b.sqrt(shifted)?;
    let unit = b.div(centred, deviation)?;
    let unit = b.cast(unit, ty.dtype)?;
    if per_group {
        let y = scale_and_shift(b, unit, scale, bias, groups, 1)?;
        return Ok(Some(vec![b.reshape_like(y, x)?]));
    }
    let unit = b.reshape_like(unit, x)?;
    let y = scale_and_shift(b, unit, scale, bias, channels, ty.rank() - 2)?;
    Ok(Some(vec![y]))
}

/// x · scale + bias, both one value for each of the `n` extents that `trailing` axes follow.
fn scale_and_shift(b: &mut Builder, x: ValueId, scale: ValueId, bias: ValueId, n: i64, trailing: usize) -> Built {
    let mut dims = vec![n];
    dims.resize(trailing + 1, 1);
    let shape: Vec<Dim> = dims.iter().map(|d| Dim::from(*d)).collect();
    let scale = b.reshape(scale, &dims, &shape)?;
    let bias = b.reshape(bias, &dims, &shape)?;
    let y = b.mul(x, scale)?;
    b.add(y, bias)
}

/// Layer normalisation over the last axis.
pub(super) fn layer_norm(b: &mut Builder, x: ValueId, scale: ValueId, bias: Option<ValueId>, epsilon: f32) -> Built {
    let attrs = Attrs::new().with("axis", -1).with("epsilon", epsilon);
    let y = b.node(Op::new("LayerNormalization", attrs), &[Some(x), Some(scale), bias])?[0];
    b.graph.drop_results(y.node, 1);
    Ok(y)
}

//! How arrays feed a model's inputs: conversions from an array's element type to an input's, where they are exact or what everyone expects, and
//! which inputs are images.

use crate::io::tensor::NpTensor;
use ancre_passes::ir::{DType, Graph, ValueId};

/// How elements of one type become elements of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conversion {
    /// The elements stay as they are.
    Same,
    /// The other type holds the value exactly: wider integers, wider floats, integers as floats (checked beforehand).
    Exact,
    /// To the nearest value of a narrower float type.
    Round,
    /// 0 … 255 to 0 … 1.
    Pixels,
}

/// How an array of type `from` feeds an input of type `to`; `None` if it may not. `image`: the input is an image. `target`: the
/// input is the target, whose integers a float loss may read.
pub(crate) fn conversion(from: DType, to: DType, image: bool, target: bool) -> Option<Conversion> {
    use DType::*;
    if from == to {
        return Some(Conversion::Same);
    }
    let bits = |t: DType| match t {
        I8 | U8 => Some(8),
        I16 | U16 => Some(16),
        I32 | U32 => Some(32),
        I64 | U64 => Some(64),
        _ => None,
    };
    let signed = |t: DType| matches!(t, I8 | I16 | I32 | I64);
    if let (Some(a), Some(b)) = (bits(from), bits(to)) {
        return (b > a && (signed(to) || !signed(from))).then_some(Conversion::Exact);
    }
    match (from, to) {
        (U8, F32 | F64 | F16 | BF16) if image => Some(Conversion::Pixels),
        (F16 | BF16, F32 | F64) | (F32, F64) => Some(Conversion::Exact),
        (F64, F32 | F16 | BF16) | (F32, F16 | BF16) => Some(Conversion::Round),
        (_, F32 | F64) if target && (bits(from).is_some() || from == Bool) => Some(Conversion::Exact),
        _ => None,
    }
}

/// A tensor with other elements and another shape of the same size. All conversions are exact in float64: integers get wider, and
/// a quotient that is rounded to float64 and then to float32 is the float32 quotient.
pub(crate) fn convert(t: NpTensor, to: DType, shape: &[usize], how: Conversion) -> Option<NpTensor> {
    if t.dtype() == to {
        return NpTensor::new(to, shape, t.into_bytes());
    }
    converted(&t, to, shape, how)
}

fn converted(t: &NpTensor, to: DType, shape: &[usize], how: Conversion) -> Option<NpTensor> {
    let mut values = t.to_f64();
    if how == Conversion::Pixels {
        values.iter_mut().for_each(|v| *v /= 255.0);
    }
    NpTensor::from_f64s(to, shape, &values)
}

/// A model that normalises its images itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normalises {
    /// The node that does it.
    pub node: String,
    /// Does it take bytes, 0 to 255?
    pub bytes: bool,
}

/// Where an image's axes lie in a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageLayout {
    /// Number of channels.
    pub(crate) channels: usize,
    /// Channels last, [H, W, C]?
    pub(crate) last: bool,
}

impl ImageLayout {
    /// The layout of samples of this shape and type if they are images: three axes, float, 1, 3 or 4 channels first or last.
    pub(crate) fn of(sample: &[Option<usize>], dtype: DType) -> Option<ImageLayout> {
        let [a, _, c] = *sample else { return None };
        let of = |d: Option<usize>, last, known: &[usize]| {
            d.filter(|n| known.contains(n)).map(|channels| ImageLayout { channels, last })
        };
        let usual = || of(a, false, &[1, 3]).or_else(|| of(c, true, &[1, 3]));
        dtype.is_float().then(|| usual().or_else(|| of(a, false, &[4])).or_else(|| of(c, true, &[4]))).flatten()
    }
}

/// The first node that subtracts, divides or multiplies an image by constants, one or one for each channel, or normalises it by
/// statistics. A node that divides by more than 16 takes bytes.
pub(crate) fn normalises(g: &Graph, image: ValueId, channels: usize) -> Option<Normalises> {
    let mut v = image;
    for _ in 0..6 {
        let uses: Vec<_> = g.uses_in_order(v).into_iter().collect();
        for (node, operand) in &uses {
            let op = g.op(*node)?;
            if op.is("BatchNormalization") && *operand == 0 {
                return Some(Normalises { node: g.site(*node).name, bytes: false });
            }
            if !["Sub", "Div", "Mul", "Add"].iter().any(|name| op.is(name)) {
                continue;
            }
            let constant = g.operand(*node, 1 - operand).and_then(|c| g.initializer(c));
            let constant = constant.filter(|c| c.len() == 1 || c.len() == channels).and_then(|c| c.to_f64().ok());
            if let Some(values) = constant {
                let factor = if op.is("Div") { 1.0 / values[0].abs() } else { values[0].abs() };
                let bytes = (op.is("Div") || op.is("Mul")) && factor < 1.0 / 16.0 || op.is("Sub") && values[0] > 16.0;
                return Some(Normalises { node: g.site(*node).name, bytes });
            }
        }
        // Through what only hands the pixels on.
        let onward =
            uses.iter().find(|(n, i)| *i == 0 && ["Cast", "Identity", "Transpose"].iter().any(|name| g.is_op(*n, name)));
        v = g.results(onward?.0).next()?;
    }
    None
}

/// An array with the element type of the input that it feeds, whose first axis counts samples; as it is where no conversion is exact or expected.
pub(crate) fn fitted(g: &Graph, input: ValueId, t: NpTensor) -> NpTensor {
    let Some(ty) = g.tensor_type(input) else { return t };
    let sample = ty.shape.iter().skip(1).map(|d| d.known().and_then(|n| usize::try_from(n).ok())).collect::<Vec<_>>();
    let layout = ImageLayout::of(&sample, ty.dtype);
    let takes_bytes = || layout.and_then(|l| normalises(g, input, l.channels)).is_some_and(|n| n.bytes);
    let how = match conversion(t.dtype(), ty.dtype, layout.is_some(), false) {
        None | Some(Conversion::Same) => return t,
        Some(Conversion::Pixels) if takes_bytes() => Conversion::Exact,
        Some(how) => how,
    };
    converted(&t, ty.dtype, t.shape(), how).unwrap_or(t)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `train` feeds them: bytes of an image as 0 … 1, unless the model scales them itself.
    #[test]
    fn arrays_are_fitted_to_their_inputs() {
        let fed = |text: &str, from: DType, values: &[f64]| {
            let g = ancre_passes::text::parse(text).unwrap();
            let image = g.tensor_type(g.find("x").unwrap()).unwrap().rank() == 4;
            let shape = if image { vec![values.len() / 4, 1, 2, 2] } else { vec![values.len()] };
            let t = NpTensor::from_f64s(from, &shape, values).unwrap();
            let t = fitted(&g, g.find("x").unwrap(), t);
            (t.dtype(), t.to_f64())
        };
        let image = "g (float[n, 1, 2, 2] x) => (y) { y = Tanh (x) }";
        let scales = "g (float[n, 1, 2, 2] x) => (y) <float c = {255}> { y = Div (x, c) }";
        let bytes = [0.0, 255.0, 51.0, 0.0];
        let scaled = f64::from(51.0f32 / 255.0);
        assert_eq!(fed(image, DType::U8, &bytes), (DType::F32, vec![0.0, 1.0, scaled, 0.0]));
        assert_eq!(fed(scales, DType::U8, &bytes), (DType::F32, bytes.to_vec()));
        assert_eq!(fed(image, DType::F64, &bytes), (DType::F32, bytes.to_vec()));
        assert_eq!(fed(image, DType::I64, &bytes).0, DType::I64);
        let ids = "g (int64[1] x) => (y) { y = Identity (x) }";
        assert_eq!(fed(ids, DType::I32, &[7.0; 4]).0, DType::I64);
    }

    #[test]
    fn only_exact_and_expected_conversions_are_made() {
        use DType::*;
        let plain = |from, to| conversion(from, to, false, false);
        for (from, to) in [(I32, I64), (U8, I64), (U32, I64), (I16, I32), (F16, F32), (BF16, F32), (F32, F64)] {
            assert_eq!(plain(from, to), Some(Conversion::Exact), "{from} to {to}");
        }
        assert_eq!(plain(F64, F32), Some(Conversion::Round));
        for (from, to) in [(I64, I32), (U64, I64), (I8, U8), (F32, I64), (I64, F32), (U8, F32), (U8, Bool)] {
            assert_eq!(plain(from, to), None, "{from} to {to}");
        }
        assert_eq!(conversion(U8, F32, true, false), Some(Conversion::Pixels));
        assert_eq!(conversion(I64, F32, false, true), Some(Conversion::Exact));
    }

    #[test]
    fn converted_elements_have_their_values() {
        use Conversion::*;
        let f32s = |t: NpTensor, how| convert(t, DType::F32, &[3], how).unwrap().to_f32();
        let of = |dtype, values: &[f64; 3]| NpTensor::from_f64s(dtype, &[1, 3], values).unwrap();
        assert_eq!(f32s(of(DType::U8, &[0.0, 255.0, 51.0]), Pixels), [0.0, 1.0, 0.2]);
        for v in 0..=255u8 {
            assert_eq!(f32s(of(DType::U8, &[v.into(); 3]), Pixels)[0], f32::from(v) / 255.0);
        }
        assert_eq!(f32s(of(DType::F64, &[0.1, -3.0, 0.0]), Round), [0.1, -3.0, 0.0]);
        assert_eq!(f32s(of(DType::F16, &[0.5, -2.0, 0.0]), Exact), [0.5, -2.0, 0.0]);
        assert_eq!(convert(of(DType::I32, &[-5.0, 7.0, 0.0]), DType::I64, &[3], Exact).unwrap().to_i64(), [-5, 7, 0]);
    }
}

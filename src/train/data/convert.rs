//! Conversions from an array's element type to an input's, where they are exact or what everyone expects.

use crate::io::tensor::NpTensor;
use ancre_passes::ir::DType;

/// How elements of one type become elements of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conversion {
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
pub(super) fn conversion(from: DType, to: DType, image: bool, target: bool) -> Option<Conversion> {
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
pub(super) fn convert(t: NpTensor, to: DType, shape: &[usize], how: Conversion) -> Option<NpTensor> {
    if t.dtype() == to {
        return NpTensor::new(to, shape, t.into_bytes());
    }
    let mut values = t.to_f64();
    if how == Conversion::Pixels {
        values.iter_mut().for_each(|v| *v /= 255.0);
    }
    NpTensor::from_f64s(to, shape, &values)
}

#[cfg(test)]
mod tests {
    use super::*;

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

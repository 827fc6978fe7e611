//! From an array's element type to an input's: only where that is exact or what everyone expects.

use ancre_passes::ir::DType;

/// How elements of one type become elements of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Conversion {
    /// As they are.
    Same,
    /// A value that the other type has exactly: wider integers, wider floats, integers as floats (checked beforehand).
    Exact,
    /// To the nearest value of a narrower float type.
    Round,
    /// 0 … 255 to 0 … 1.
    Pixels,
}

/// May an array of type `from` feed an input of type `to`? `image`: the input is an image; `target`: it is the target, whose
/// integers a float loss may read.
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

/// Converts little-endian elements.
pub(super) fn convert(bytes: Vec<u8>, from: DType, to: DType, how: Conversion) -> Vec<u8> {
    if how == Conversion::Same {
        return bytes;
    }
    if !to.is_float() {
        return match to {
            DType::I64 => integers(&bytes, from).flat_map(i64::to_le_bytes).collect(),
            DType::U64 => integers(&bytes, from).flat_map(|v| (v as u64).to_le_bytes()).collect(),
            DType::I32 => integers(&bytes, from).flat_map(|v| (v as i32).to_le_bytes()).collect(),
            DType::U32 => integers(&bytes, from).flat_map(|v| (v as u32).to_le_bytes()).collect(),
            DType::I16 => integers(&bytes, from).flat_map(|v| (v as i16).to_le_bytes()).collect(),
            _ => integers(&bytes, from).flat_map(|v| (v as u16).to_le_bytes()).collect(),
        };
    }
    match (from, to, how) {
        (DType::U8, DType::F32, Conversion::Pixels) => {
            bytes.iter().flat_map(|v| (f32::from(*v) / 255.0).to_le_bytes()).collect()
        }
        (DType::F64, DType::F32, _) => {
            bytes.as_chunks::<8>().0.iter().flat_map(|c| (f64::from_le_bytes(*c) as f32).to_le_bytes()).collect()
        }
        _ => {
            let scale = if how == Conversion::Pixels { 1.0 / 255.0 } else { 1.0 };
            let values: Vec<f64> = numbers(&bytes, from).into_iter().map(|v| v * scale).collect();
            crate::io::tensor::NpTensor::from_f64s(to, &[values.len()], &values).map_or(Vec::new(), |t| t.bytes().to_vec())
        }
    }
}

/// Elements of an integer or boolean type.
pub(super) fn integers(bytes: &[u8], from: DType) -> Box<dyn Iterator<Item = i64> + '_> {
    macro_rules! read {
        ($t:ty, $n:literal) => {
            Box::new(bytes.as_chunks::<$n>().0.iter().map(|c| <$t>::from_le_bytes(*c) as i64))
        };
    }
    match from {
        DType::I64 => read!(i64, 8),
        DType::U64 => read!(u64, 8),
        DType::I32 => read!(i32, 4),
        DType::U32 => read!(u32, 4),
        DType::I16 => read!(i16, 2),
        DType::U16 => read!(u16, 2),
        DType::I8 => read!(i8, 1),
        _ => read!(u8, 1),
    }
}

/// Elements of any type as f64.
pub(super) fn numbers(bytes: &[u8], from: DType) -> Vec<f64> {
    if !from.is_float() {
        return integers(bytes, from).map(|v| v as f64).collect();
    }
    let size = from.size().unwrap_or(1);
    crate::io::tensor::NpTensor::new(from, &[bytes.len() / size], bytes.to_vec()).map_or(Vec::new(), |t| t.to_f64())
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
        let f32s = |bytes: Vec<u8>| numbers(&bytes, DType::F32);
        assert_eq!(f32s(convert(vec![0, 255, 51], DType::U8, DType::F32, Conversion::Pixels)), [0.0, 1.0, 0.2f32 as f64]);
        let doubles = [0.1f64, -3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(f32s(convert(doubles, DType::F64, DType::F32, Conversion::Round)), [0.1f32 as f64, -3.0]);
        let small = [-5i32, 7].iter().flat_map(|v| v.to_le_bytes()).collect();
        let wide = convert(small, DType::I32, DType::I64, Conversion::Exact);
        assert_eq!(integers(&wide, DType::I64).collect::<Vec<_>>(), [-5, 7]);
        let halves = crate::io::tensor::NpTensor::from_f64s(DType::F16, &[2], &[0.5, -2.0]).unwrap().bytes().to_vec();
        assert_eq!(f32s(convert(halves, DType::F16, DType::F32, Conversion::Exact)), [0.5, -2.0]);
    }
}

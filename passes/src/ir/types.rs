//! Element types and tensor types of the IR.

use super::dim::Dim;
use std::fmt;

/// Element type of a tensor, with ONNX's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
#[repr(i32)]
pub enum DType {
    F32 = 1,
    U8 = 2,
    I8 = 3,
    U16 = 4,
    I16 = 5,
    I32 = 6,
    I64 = 7,
    Str = 8,
    Bool = 9,
    F16 = 10,
    F64 = 11,
    U32 = 12,
    U64 = 13,
    C64 = 14,
    C128 = 15,
    BF16 = 16,
    F8E4M3 = 17,
    F8E4M3Z = 18,
    F8E5M2 = 19,
    F8E5M2Z = 20,
    U4 = 21,
    I4 = 22,
    F4 = 23,
    F8E8M0 = 24,
    U2 = 25,
    I2 = 26,
}

impl DType {
    /// From `TensorProto.DataType`; `None` for UNDEFINED and for types newer than this tool.
    pub fn from_onnx(code: i32) -> Option<DType> {
        use DType::*;
        const ALL: [DType; 26] = [
            F32, U8, I8, U16, I16, I32, I64, Str, Bool, F16, F64, U32, U64, C64, C128, BF16, F8E4M3, F8E4M3Z, F8E5M2,
            F8E5M2Z, U4, I4, F4, F8E8M0, U2, I2,
        ];
        usize::try_from(code.checked_sub(1)?).ok().and_then(|i| ALL.get(i).copied())
    }

    /// The `TensorProto.DataType` number.
    pub fn onnx(self) -> i32 {
        self as i32
    }

    /// Can derivatives flow through values of this type?
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
    }

    /// Bytes of one element in `raw_data`; `None` for strings and for sub-byte types.
    pub fn size(self) -> Option<usize> {
        use DType::*;
        Some(match self {
            U8 | I8 | Bool | F8E4M3 | F8E4M3Z | F8E5M2 | F8E5M2Z | F8E8M0 => 1,
            U16 | I16 | F16 | BF16 => 2,
            F32 | I32 | U32 => 4,
            F64 | I64 | U64 | C64 => 8,
            C128 => 16,
            Str | U4 | I4 | F4 | U2 | I2 => return None,
        })
    }

    /// Short name for people and reports: `f32`, `i64`, `bool`, …
    pub fn name(self) -> &'static str {
        use DType::*;
        match self {
            F32 => "f32",
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            I32 => "i32",
            I64 => "i64",
            Str => "str",
            Bool => "bool",
            F16 => "f16",
            F64 => "f64",
            U32 => "u32",
            U64 => "u64",
            C64 => "c64",
            C128 => "c128",
            BF16 => "bf16",
            F8E4M3 => "f8e4m3fn",
            F8E4M3Z => "f8e4m3fnuz",
            F8E5M2 => "f8e5m2",
            F8E5M2Z => "f8e5m2fnuz",
            U4 => "u4",
            I4 => "i4",
            F4 => "f4e2m1",
            F8E8M0 => "f8e8m0",
            U2 => "u2",
            I2 => "i2",
        }
    }

    /// The name ONNX's kernel listings and text syntax use: `float`, `int64`, `bfloat16`, …
    pub fn onnx_name(self) -> &'static str {
        use DType::*;
        match self {
            F32 => "float",
            U8 => "uint8",
            I8 => "int8",
            U16 => "uint16",
            I16 => "int16",
            I32 => "int32",
            I64 => "int64",
            Str => "string",
            Bool => "bool",
            F16 => "float16",
            F64 => "double",
            U32 => "uint32",
            U64 => "uint64",
            C64 => "complex64",
            C128 => "complex128",
            BF16 => "bfloat16",
            F8E4M3 => "float8e4m3fn",
            F8E4M3Z => "float8e4m3fnuz",
            F8E5M2 => "float8e5m2",
            F8E5M2Z => "float8e5m2fnuz",
            U4 => "uint4",
            I4 => "int4",
            F4 => "float4e2m1",
            F8E8M0 => "float8e8m0",
            U2 => "uint2",
            I2 => "int2",
        }
    }

    /// The inverse of [`DType::onnx_name`].
    pub fn from_onnx_name(name: &str) -> Option<DType> {
        (1..=26).filter_map(DType::from_onnx).find(|t| t.onnx_name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Dimensions of a tensor, outermost first.
pub type Shape = Vec<Dim>;

/// What is known of a value: element type and shape, each possibly unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValueType {
    /// Element type.
    pub dtype: Option<DType>,
    /// Shape; `None` when not even the rank is known.
    pub shape: Option<Shape>,
}

/// A fully known tensor type (dimensions may be symbolic).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Shape,
}

impl TensorType {
    /// A type from parts.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> TensorType {
        TensorType { dtype, shape: shape.into() }
    }

    /// A type with fixed dimensions.
    pub fn fixed(dtype: DType, dims: &[i64]) -> TensorType {
        TensorType { dtype, shape: dims.iter().map(|d| Dim::from(*d)).collect() }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The dimensions, if none is symbolic.
    pub fn known_dims(&self) -> Option<Vec<i64>> {
        self.shape.iter().map(Dim::known).collect()
    }

    /// Number of elements.
    pub fn elements(&self) -> Dim {
        self.shape.iter().fold(Dim::from(1), |a, d| &a * d)
    }

    /// `axis` counted from the front; `None` when out of range.
    pub fn axis(&self, axis: i64) -> Option<usize> {
        let rank = self.rank() as i64;
        let a = if axis < 0 { axis + rank } else { axis };
        (0..rank).contains(&a).then_some(a as usize)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype, Joined(&self.shape))
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype {
            Some(t) => write!(f, "{t}")?,
            None => f.write_str("?")?,
        }
        match &self.shape {
            Some(s) => write!(f, "[{}]", Joined(s)),
            None => f.write_str("[…]"),
        }
    }
}

struct Joined<'a>(&'a [Dim]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{d}")?;
        }
        Ok(())
    }
}

impl From<TensorType> for ValueType {
    fn from(t: TensorType) -> ValueType {
        ValueType { dtype: Some(t.dtype), shape: Some(t.shape) }
    }
}

impl ValueType {
    /// The full tensor type, if both parts are known.
    pub fn tensor(&self) -> Option<TensorType> {
        Some(TensorType { dtype: self.dtype?, shape: self.shape.clone()? })
    }
}

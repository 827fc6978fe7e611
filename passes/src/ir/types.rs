//! Element types and tensor types of the IR.

use super::dim::Dim;
use std::fmt;

/// The table of element types: number and name in ONNX, bytes of one element in `raw_data` (0 for strings and for types of less
/// than a byte), and the name in reports.
macro_rules! element_types {
    ($($variant:ident = $number:literal, $onnx:literal, $size:literal, $name:literal;)+) => {
        /// Element type of a tensor, with ONNX's numbering.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)]
        #[repr(i32)]
        pub enum DType {
            $($variant = $number,)+
        }

        impl DType {
            const ALL: &[DType] = &[$(DType::$variant),+];

            /// Bytes of one element in `raw_data`; `None` for strings and for types of less than a byte.
            pub fn size(self) -> Option<usize> {
                let size = match self { $(DType::$variant => $size,)+ };
                (size > 0).then_some(size)
            }

            /// Bytes of so many elements in `raw_data`; those of less than a byte are packed. `None` for strings.
            pub fn bytes_of(self, elements: usize) -> Option<usize> {
                match self {
                    DType::U4 | DType::I4 | DType::F4 => Some(elements.div_ceil(2)),
                    DType::U2 | DType::I2 => Some(elements.div_ceil(4)),
                    _ => self.size().map(|s| s * elements),
                }
            }

            /// Short name for people and reports: `f32`, `i64`, `bool`, …
            pub fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)+ }
            }

            /// The name in ONNX's kernel listings and text syntax: `float`, `int64`, `bfloat16`, …
            pub fn onnx_name(self) -> &'static str {
                match self { $(DType::$variant => $onnx,)+ }
            }
        }
    };
}

element_types! {
    F32 = 1, "float", 4, "f32";
    U8 = 2, "uint8", 1, "u8";
    I8 = 3, "int8", 1, "i8";
    U16 = 4, "uint16", 2, "u16";
    I16 = 5, "int16", 2, "i16";
    I32 = 6, "int32", 4, "i32";
    I64 = 7, "int64", 8, "i64";
    Str = 8, "string", 0, "str";
    Bool = 9, "bool", 1, "bool";
    F16 = 10, "float16", 2, "f16";
    F64 = 11, "double", 8, "f64";
    U32 = 12, "uint32", 4, "u32";
    U64 = 13, "uint64", 8, "u64";
    C64 = 14, "complex64", 8, "c64";
    C128 = 15, "complex128", 16, "c128";
    BF16 = 16, "bfloat16", 2, "bf16";
    F8E4M3 = 17, "float8e4m3fn", 1, "f8e4m3fn";
    F8E4M3Z = 18, "float8e4m3fnuz", 1, "f8e4m3fnuz";
    F8E5M2 = 19, "float8e5m2", 1, "f8e5m2";
    F8E5M2Z = 20, "float8e5m2fnuz", 1, "f8e5m2fnuz";
    U4 = 21, "uint4", 0, "u4";
    I4 = 22, "int4", 0, "i4";
    F4 = 23, "float4e2m1", 0, "f4e2m1";
    F8E8M0 = 24, "float8e8m0", 1, "f8e8m0";
    U2 = 25, "uint2", 0, "u2";
    I2 = 26, "int2", 0, "i2";
}

impl DType {
    /// From `TensorProto.DataType`; `None` for UNDEFINED and for types newer than this tool.
    pub fn from_onnx(number: i32) -> Option<DType> {
        DType::ALL.iter().copied().find(|t| t.onnx() == number)
    }

    /// The `TensorProto.DataType` number.
    pub fn onnx(self) -> i32 {
        self as i32
    }

    /// The inverse of [`DType::onnx_name`].
    pub fn from_onnx_name(name: &str) -> Option<DType> {
        DType::ALL.iter().copied().find(|t| t.onnx_name() == name)
    }

    /// Can derivatives flow through values of this type?
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64 | DType::F16 | DType::BF16)
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

    /// Could this be the same type? Symbolic extents agree with anything.
    pub fn may_be(&self, other: &TensorType) -> bool {
        let agree = |(a, b): (&Dim, &Dim)| a == b || a.known().is_none() || b.known().is_none();
        self.dtype == other.dtype && self.rank() == other.rank() && self.shape.iter().zip(&other.shape).all(agree)
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

/// Has a shape more elements than any tensor? Symbolic extents count as 1.
pub fn is_absurd(shape: &[Dim]) -> bool {
    let known = shape.iter().filter_map(Dim::known).filter(|d| *d != 0);
    known.fold(1i64, i64::saturating_mul) >= 1 << 48
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype, joined(&self.shape))
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.dtype, self.shape.as_deref()) {
            (Some(dtype), Some(shape)) => write!(f, "{}[{}]", dtype.name(), joined(shape)),
            (Some(dtype), None) => write!(f, "{} of unknown rank", dtype.name()),
            (None, Some(shape)) => write!(f, "[{}] of unknown element type", joined(shape)),
            (None, None) => f.write_str("of unknown type"),
        }
    }
}

fn joined(shape: &[Dim]) -> String {
    shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(",")
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

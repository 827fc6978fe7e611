//! Applications of an operator by which its rules are tested.

use super::OpRule;
use crate::ir::{Attrs, Op};

/// An operand of a sample.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum SampleOperand {
    /// Random float32 numbers in a range; the derivative is checked. Ranges keep away from kinks and poles.
    Floats { dims: Vec<i64>, low: f32, high: f32 },
    /// These float32 numbers, such as distinct ones for maxima; the derivative is checked.
    Values { dims: Vec<i64>, values: Vec<f32> },
    /// A constant float32 operand (an initializer), not differentiated.
    FloatConstant { dims: Vec<i64>, values: Vec<f32> },
    /// An integer constant, such as axes or a shape.
    Ints { dims: Vec<i64>, values: Vec<i64> },
    /// A constant of int32, such as the ids of an embedding.
    Ints32 { dims: Vec<i64>, values: Vec<i64> },
    /// A constant of bytes, such as packed codes.
    Bytes { dims: Vec<i64>, values: Vec<u8> },
    /// A boolean constant.
    Bools { dims: Vec<i64>, values: Vec<bool> },
    /// A missing optional operand.
    Missing,
}

/// One application.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Operator and attributes.
    pub op: Op,
    /// Operands.
    pub operands: Vec<SampleOperand>,
    /// Number of results that are read (and get a cotangent).
    pub results: usize,
    /// Opset the sample is built at.
    pub opset: i64,
    /// Compare the derivative too (false: only the shape rule).
    pub differentiate: bool,
}

/// A sample at opset 18 with one result, of the operator whose rule lists it.
pub(crate) fn sample(attrs: Attrs, operands: Vec<SampleOperand>) -> Sample {
    Sample { op: Op::new("", attrs), operands, results: 1, opset: 18, differentiate: true }
}

/// The same without attributes.
pub(crate) fn plain(operands: Vec<SampleOperand>) -> Sample {
    sample(Attrs::new(), operands)
}

impl Sample {
    /// The same of an operator.
    pub(crate) fn of(mut self, rule: &dyn OpRule) -> Sample {
        (self.op.domain, self.op.name) = (rule.domain().into(), rule.name().into());
        self
    }

    /// The same at another opset.
    pub fn at(mut self, opset: i64) -> Sample {
        self.opset = opset;
        self
    }

    /// The same with more results.
    pub fn results(mut self, results: usize) -> Sample {
        self.results = results;
        self
    }

    /// The same, for the shape rule only.
    pub fn shape_only(mut self) -> Sample {
        self.differentiate = false;
        self
    }
}

/// Random floats in [−1.5, 1.5].
pub(crate) fn floats(dims: &[i64]) -> SampleOperand {
    SampleOperand::Floats { dims: dims.to_vec(), low: -1.5, high: 1.5 }
}

/// Random floats in a range.
pub(crate) fn floats_in(dims: &[i64], low: f32, high: f32) -> SampleOperand {
    SampleOperand::Floats { dims: dims.to_vec(), low, high }
}

/// These floats.
pub(crate) fn values(dims: &[i64], values: &[f32]) -> SampleOperand {
    SampleOperand::Values { dims: dims.to_vec(), values: values.to_vec() }
}

/// A constant of these floats.
pub(crate) fn fixed(dims: &[i64], values: &[f32]) -> SampleOperand {
    SampleOperand::FloatConstant { dims: dims.to_vec(), values: values.to_vec() }
}

/// An int64 constant vector.
pub(crate) fn ints(values: &[i64]) -> SampleOperand {
    ints_of(&[values.len() as i64], values)
}

/// An int64 constant.
pub(crate) fn ints_of(dims: &[i64], values: &[i64]) -> SampleOperand {
    SampleOperand::Ints { dims: dims.to_vec(), values: values.to_vec() }
}

/// A boolean constant.
pub(crate) fn truths(dims: &[i64], values: &[bool]) -> SampleOperand {
    SampleOperand::Bools { dims: dims.to_vec(), values: values.to_vec() }
}

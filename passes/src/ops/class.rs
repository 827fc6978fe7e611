//! The class of every operator, with or without a rule. Passes and analyses ask it whether an operator is element-wise, changes
//! only the layout, is random, and so on.

use crate::ir::Op;
use std::collections::HashMap;
use std::sync::OnceLock;

/// What an operator does to the values that pass through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Passes its first operand on element by element, up to precision.
    Carry,
    /// Adds operands element by element.
    Add,
    /// Multiplies or divides two operands element by element.
    Scale,
    /// A nonlinear function of each element that networks use between linear maps.
    Activation,
    /// Any other nonlinear function of each element.
    Nonlinear,
    /// Element-wise and none of the above.
    Elementwise,
    /// A nonlinear function of each row along one axis: a softmax.
    Rows,
    /// Rearranges the elements of its first operand.
    Layout,
    /// Selects, pads, resizes or repeats elements: keeps values, but not all of them, or not each once.
    Select,
    /// Joins tensors side by side.
    Concat,
    /// Normalises its first operand.
    Norm,
    /// Mean, maximum, … over axes.
    Reduce,
    /// Accumulates or orders elements along an axis, or finds their places.
    Scan,
    /// Combines elements across positions or channels with weights, or across positions by a window.
    Mixing(Mixing),
    /// Draws random numbers.
    Random,
    /// Makes a value from a shape, a type or a few numbers alone.
    Make,
    /// Sums values by a router's weights, or is part of that sum's derivative.
    Route,
    /// Does several of the above at once.
    Fused,
    /// Anything else.
    Other,
}

/// The mixing operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Mixing {
    Conv,
    MatMul,
    Attention,
    Pool,
    Recurrent,
    Fourier,
    Opaque,
}

impl Mixing {
    /// Its word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Mixing::Conv => "Conv",
            Mixing::MatMul => "MatMul",
            Mixing::Attention => "Attention",
            Mixing::Pool => "Pool",
            Mixing::Recurrent => "Recurrent",
            Mixing::Fourier => "Fourier",
            Mixing::Opaque => "Opaque",
        }
    }
}

/// Names, separated by blanks. A name means the same in every operator set.
#[rustfmt::skip]
const CLASSES: &[(Class, &str)] = &[
    (Class::Carry, "Identity Cast CastLike BitCast Dropout QuantizeLinear DequantizeLinear Contiguous FakeQuantize \
        Quantize"),
    (Class::Add, "Add Sum QLinearAdd"),
    (Class::Scale, "Mul Div QLinearMul"),
    (Class::Activation, "Relu LeakyRelu PRelu Elu Selu Celu Gelu FastGelu BiasGelu QuickGelu Sigmoid HardSigmoid HardSwish Swish SwiGLU \
        Mish Tanh Clip ThresholdedRelu Softplus Softsign Shrink QLinearSigmoid QLinearLeakyRelu"),
    (Class::Nonlinear, "Erf Exp Log Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Abs Max Min Sign Floor Ceil Round"),
    (Class::Elementwise, "Sub Neg Pow Mod Sqrt Reciprocal Where Mean IsNaN IsInf Equal Greater Less GreaterOrEqual LessOrEqual \
        QLinearWhere Not And Or Xor BitShift BitwiseNot BitwiseAnd BitwiseOr BitwiseXor"),
    (Class::Rows, "Softmax LogSoftmax Hardmax QLinearSoftmax"),
    (Class::Layout, "Reshape Transpose Squeeze Unsqueeze Flatten ReorderInput ReorderOutput"),
    (Class::Select, "Slice Pad Resize Upsample DepthToSpace SpaceToDepth Gather Split Expand Tile GatherElements GatherND \
        ScatterND ScatterElements Scatter Compress CenterCropPad Col2Im Trilu ReverseSequence TensorScatter SequenceAt"),
    (Class::Concat, "Concat QLinearConcat"),
    (Class::Norm, "BatchNormalization LayerNormalization InstanceNormalization GroupNormalization GroupNorm \
        RMSNormalization SimplifiedLayerNormalization LpNormalization MeanVarianceNormalization LRN BatchNormTrain"),
    (Class::Reduce, "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum \
        ReduceLogSumExp GlobalAveragePool GlobalMaxPool GlobalLpPool QLinearGlobalAveragePool QLinearReduceMean"),
    (Class::Scan, "CumSum CumProd TopK ArgMax ArgMin NonZero OneHot Unique"),
    (Class::Mixing(Mixing::Conv), "Conv ConvTranspose ConvInteger QLinearConv FusedConv DeformConv CausalConvWithState \
        ConvWeightCotangent"),
    (Class::Mixing(Mixing::MatMul), "MatMul FusedMatMul TransposeMatMul Gemm FusedGemm Einsum \
        QLinearMatMul QGemm MatMulIntegerToFloat DynamicQuantizeMatMul MatMulNBits"),
    (Class::Mixing(Mixing::Attention), "Attention MultiHeadAttention GroupQueryAttention LinearAttention"),
    (Class::Mixing(Mixing::Pool), "MaxPool AveragePool LpPool RoiAlign MaxRoiPool QLinearAveragePool"),
    (Class::Mixing(Mixing::Recurrent), "LSTM GRU RNN DynamicQuantizeLSTM"),
    (Class::Mixing(Mixing::Fourier), "DFT STFT Rfft Irfft"),
    (Class::Mixing(Mixing::Opaque), "Loop Scan MoE QMoE"),
    (Class::Random, "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial BiasDropout \
        BitmaskDropout BitmaskBiasDropout"),
    (Class::Make, "Shape Size Constant ConstantOfShape Range EyeLike"),
    (Class::Route, "Route RouteCotangent RouteWeightsCotangent"),
    (Class::Fused, "SkipLayerNormalization SkipSimplifiedLayerNormalization SkipGroupNorm EmbedLayerNormalization RotaryEmbedding \
        SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss"),
];

/// The class of a name in the table.
fn listed(name: &str) -> Option<Class> {
    static TABLE: OnceLock<HashMap<&'static str, Class>> = OnceLock::new();
    let words = || CLASSES.iter().flat_map(|(class, names)| names.split_whitespace().map(move |n| (n, *class)));
    TABLE.get_or_init(|| words().collect()).get(name).copied()
}

impl Class {
    /// The class of an operator, by the table. A fused or quantised variant that the table lacks is classed by the plain
    /// operator's word in its name.
    pub fn of(op: &Op) -> Class {
        let name = op.name.as_str();
        if let Some(class) = listed(name) {
            return class;
        }
        let contains = |words: &[&str]| words.iter().any(|w| name.contains(w));
        if name.starts_with("Reduce") || contains(&["GlobalAveragePool", "GlobalMaxPool"]) {
            return Class::Reduce;
        }
        let kinds: [(&[&str], Mixing); 4] = [
            (&["Conv"], Mixing::Conv),
            (&["MatMul", "Gemm"], Mixing::MatMul),
            (&["Attention"], Mixing::Attention),
            (&["Pool"], Mixing::Pool),
        ];
        if let Some((_, mixing)) = kinds.iter().find(|(words, _)| contains(words)) {
            return Class::Mixing(*mixing);
        }
        match op.domain.as_str() {
            "" | "ai.onnx" | "ai.onnx.ml" | "com.microsoft" | "ancre" => Class::Other,
            // An operator of a custom library is most likely a convolution or an attention.
            _ => Class::Mixing(Mixing::Opaque),
        }
    }

    /// Does each element of the result depend only on the elements of the (broadcast) operands at its place?
    pub fn is_elementwise(self) -> bool {
        use Class::*;
        matches!(self, Carry | Add | Scale | Activation | Nonlinear | Elementwise)
    }

    /// Is it a nonlinear function of each element, or of each row?
    pub fn is_nonlinear(self) -> bool {
        matches!(self, Class::Activation | Class::Nonlinear | Class::Rows)
    }
}

/// Does the operator draw random numbers? A `Dropout` in training does too, but only its operands tell.
pub fn is_random(name: &str) -> bool {
    listed(name) == Some(Class::Random)
}

/// Does the operator keep all elements of its first operand, in another type or layout, perhaps repeated?
pub fn keeps_elements(op: &Op) -> bool {
    let class = Class::of(op);
    op.domain.is_empty()
        && (class == Class::Layout || matches!(op.name.as_str(), "Identity" | "Cast" | "CastLike" | "Expand"))
}

/// Does the operator keep its first operand, or a part of it?
pub fn passes_through(op: &Op) -> bool {
    keeps_elements(op) || op.is("Slice")
}

/// Does the operator read nothing of this operand but the type of its elements?
pub fn reads_element_type(op: &Op, operand: usize) -> bool {
    op.domain.is_empty() && is_type_alone(&op.name, operand)
}

/// Is nothing of this operand of a standard operator read but the type of its elements?
pub(super) fn is_type_alone(name: &str, operand: usize) -> bool {
    (name, operand) == ("CastLike", 1)
}

/// Does the operator read this operand's numbers as data, rather than for a shape, a type or the axes to work on?
pub fn reads_values(op: &Op, operand: usize) -> bool {
    match op.name.as_str() {
        "RandomNormalLike" | "RandomUniformLike" => false,
        "Reshape" | "Expand" | "Tile" | "Slice" | "Pad" | "Resize" | "Upsample" | "Unsqueeze" | "Squeeze" | "Split"
        | "TopK" | "CastLike" | "Dropout" => operand == 0,
        name if name.starts_with("Reduce") => operand == 0,
        _ => Class::of(op) != Class::Make,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::rules;

    #[test]
    fn every_rule_has_a_class() {
        let missing: Vec<&str> = rules().iter().map(|r| r.name()).filter(|n| listed(n).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?} stand in no line of the table");
    }

    #[test]
    fn a_name_stands_in_one_line() {
        let mut names: Vec<&str> = CLASSES.iter().flat_map(|(_, names)| names.split_whitespace()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    }

    #[test]
    fn variants_that_no_line_names_go_by_the_operators_word() {
        let of = |domain: &str, name: &str| {
            let mut op = Op::new(name, crate::ir::Attrs::new());
            op.domain = domain.into();
            Class::of(&op)
        };
        assert_eq!(of("com.microsoft", "QLinearGlobalAveragePool"), Class::Reduce);
        assert_eq!(of("com.microsoft", "NhwcFusedConv"), Class::Mixing(Mixing::Conv));
        assert_eq!(of("com.microsoft", "BiasAdd"), Class::Other);
        assert_eq!(of("my.library", "Mixer"), Class::Mixing(Mixing::Opaque));
    }
}

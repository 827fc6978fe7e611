//! Operators without a rule: they are kept and emitted, and have no derivative. Where a user can do something about it the reason says so.

use super::blocks::NCHWC;
use crate::ir::Op;

const BODY: &str = "what constants and shapes decide takes its place; otherwise its body is a graph of its own, which is kept and not \
     differentiated";
const PLACES: &str = "it reads at computed, fractional places, and stock runtimes have no operator for the adjoint";
const QUANTISED: &str = "it computes with quantised numbers, which train only where what reads them dequantises them by the scale they were made with";
const FUSED_QUANTISED: &str = "a fused operator on quantised numbers; save the model before the runtime's optimiser, or train the float model and \
     quantise afterwards";
const FOURIER: &str = "a short-time Fourier transform has no plain form here";
const SELECTS: &str = "how many elements it selects depends on the data, so its adjoint has no static form";
const SEQUENCE: &str = "it works on a sequence or optional, not on a tensor; export the model with plain tensors";
const FUSED: &str = "a fused operator of ONNX Runtime without a plain form here; save the model before the runtime's optimiser, or with fewer fusions";

const BLOCKED: &str = "it works on channels in blocks, as the runtime leaves them at its highest optimisation level, and `--target cpu-blocks` writes them; \
     save the model with ORT_ENABLE_EXTENDED or less, or write it with --target cpu";

/// Operator set, operators, and why they have no derivative.
const REASONS: &[(&str, &str, &str)] = &[
    ("", "If Loop Scan SequenceMap", BODY),
    ("", "GridSample RoiAlign MaxRoiPool DeformConv AffineGrid MaxUnpool", PLACES),
    ("", "QuantizeLinear DequantizeLinear DynamicQuantizeLinear ConvInteger MatMulInteger", QUANTISED),
    ("", "STFT", FOURIER),
    ("", "Compress Unique NonMaxSuppression StringNormalizer TfIdfVectorizer", SELECTS),
    (
        "",
        "SequenceConstruct SequenceEmpty SequenceInsert SequenceErase SequenceLength SplitToSequence \
         ConcatFromSequence Optional OptionalGetElement OptionalHasElement",
        SEQUENCE,
    ),
    ("com.microsoft", "QuantizeLinear DequantizeLinear", QUANTISED),
    ("com.microsoft", "QAttention GatherBlockQuantized", FUSED_QUANTISED),
    (
        "com.microsoft",
        "GroupQueryAttention NhwcFusedConv SkipGroupNorm PackedAttention DecoderMaskedMultiHeadAttention NhwcConv \
         GroupNorm BiasSplitGelu BiasAdd RelativePositionBias GatedRelativePositionBias MoE QMoE",
        FUSED,
    ),
    (NCHWC, "Conv MaxPool AveragePool GlobalMaxPool GlobalAveragePool Upsample ReorderInput ReorderOutput", BLOCKED),
];

/// Each operator of the list: operator set, operator, reason.
pub fn unruled() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    REASONS.iter().flat_map(|(domain, ops, why)| ops.split_whitespace().map(move |op| (*domain, op, *why)))
}

/// Why an operator without a rule has no derivative.
pub fn why_no_rule(op: &Op) -> &'static str {
    let domain = if op.domain == "ai.onnx" { "" } else { op.domain.as_str() };
    let known = unruled().find(|(d, name, _)| *d == domain && *name == op.name);
    known.map_or("this tool has no rule for the operator", |(_, _, why)| why)
}

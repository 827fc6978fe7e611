//! Attributes as keys: defaults left out, axes counted from the front, subgraphs with names that say nothing.

use super::canonical::Site;
use super::subgraph;
use super::term::{AttrKey, Table, TermId};
use crate::ir::{Attr, Op};

/// What an attribute that may be left out is.
enum Default {
    Int(i64),
    Float(f32),
    Str(&'static str),
    Ones,
    Zeros,
}

/// Defaults that have been the same in every operator set that has the attribute. Empty operator: of all that have it.
const DEFAULTS: &[(&str, &str, Default)] = &[
    ("", "auto_pad", Default::Str("NOTSET")),
    ("", "auto_pad", Default::Str("")),
    ("", "dilations", Default::Ones),
    ("", "strides", Default::Ones),
    ("", "group", Default::Int(1)),
    ("", "output_padding", Default::Zeros),
    ("", "keepdims", Default::Int(1)),
    ("", "noop_with_empty_axes", Default::Int(0)),
    ("", "select_last_index", Default::Int(0)),
    ("", "ceil_mode", Default::Int(0)),
    ("", "storage_order", Default::Int(0)),
    ("", "count_include_pad", Default::Int(0)),
    ("", "batch_dims", Default::Int(0)),
    ("", "saturate", Default::Int(1)),
    ("", "stash_type", Default::Int(1)),
    ("", "block_size", Default::Int(0)),
    ("", "output_dtype", Default::Int(0)),
    ("", "precision", Default::Int(0)),
    // Losses have the mean by default.
    ("ScatterND", "reduction", Default::Str("none")),
    ("ScatterElements", "reduction", Default::Str("none")),
    ("Conv", "pads", Default::Zeros),
    ("ConvTranspose", "pads", Default::Zeros),
    ("MaxPool", "pads", Default::Zeros),
    ("AveragePool", "pads", Default::Zeros),
    ("LpPool", "pads", Default::Zeros),
    ("BatchNormalization", "epsilon", Default::Float(1e-5)),
    ("BatchNormalization", "training_mode", Default::Int(0)),
    ("BatchNormalization", "spatial", Default::Int(1)),
    ("LayerNormalization", "epsilon", Default::Float(1e-5)),
    ("InstanceNormalization", "epsilon", Default::Float(1e-5)),
    ("GroupNormalization", "epsilon", Default::Float(1e-5)),
    ("RMSNormalization", "epsilon", Default::Float(1e-5)),
    ("Gemm", "alpha", Default::Float(1.0)),
    ("Gemm", "beta", Default::Float(1.0)),
    ("Gemm", "transA", Default::Int(0)),
    ("Gemm", "transB", Default::Int(0)),
    ("LeakyRelu", "alpha", Default::Float(0.01)),
    ("Elu", "alpha", Default::Float(1.0)),
    ("Celu", "alpha", Default::Float(1.0)),
    ("ThresholdedRelu", "alpha", Default::Float(1.0)),
    ("HardSigmoid", "alpha", Default::Float(0.2)),
    ("HardSigmoid", "beta", Default::Float(0.5)),
    ("Gelu", "approximate", Default::Str("none")),
    ("Reshape", "allowzero", Default::Int(0)),
    ("Cast", "round_mode", Default::Str("up")),
    ("Shape", "start", Default::Int(0)),
    ("Mod", "fmod", Default::Int(0)),
    ("Pad", "mode", Default::Str("constant")),
    ("DepthToSpace", "mode", Default::Str("DCR")),
    ("TopK", "largest", Default::Int(1)),
    ("TopK", "sorted", Default::Int(1)),
    ("Trilu", "upper", Default::Int(1)),
    ("CumSum", "exclusive", Default::Int(0)),
    ("CumSum", "reverse", Default::Int(0)),
    ("EyeLike", "k", Default::Int(0)),
    ("IsInf", "detect_negative", Default::Int(1)),
    ("IsInf", "detect_positive", Default::Int(1)),
];

/// Where the axis is counted from in operators that may leave it out. Softmax and its kin are not here: their default changed.
const AXES: &[(&str, i64)] = &[
    ("Gather", 0),
    ("GatherElements", 0),
    ("ScatterElements", 0),
    ("ArgMax", 0),
    ("ArgMin", 0),
    ("Split", 0),
    ("Flatten", 1),
    ("LayerNormalization", -1),
    ("RMSNormalization", -1),
    ("TopK", -1),
    ("LpNormalization", -1),
    ("Concat", 1),
];

fn is_default(op: &str, name: &str, a: &Attr) -> bool {
    DEFAULTS.iter().filter(|(o, n, _)| (o.is_empty() || *o == op) && *n == name).any(|(_, _, d)| match (d, a) {
        (Default::Int(d), Attr::Int(v)) => d == v,
        (Default::Float(d), Attr::Float(v)) => d.to_bits() == v.to_bits(),
        (Default::Str(d), Attr::Str(v)) => d == v,
        (Default::Ones, Attr::Ints(v)) => v.iter().all(|v| *v == 1),
        (Default::Zeros, Attr::Ints(v)) => v.iter().all(|v| *v == 0),
        _ => false,
    })
}

impl<'g> Table<'g> {
    /// The attributes of an operator that say something, by name; `None` when one cannot be compared. `captured` are the names
    /// of the values that its subgraphs read from outside.
    pub(super) fn attributes(
        &mut self,
        op: &'g Op,
        site: &Site<'_, 'g>,
        captured: &[&str],
    ) -> Option<Vec<(String, AttrKey)>> {
        let args = site.args;
        let standard = op.domain.is_empty();
        let shape_of =
            |t: &Self, i: usize| args.get(i).and_then(|x| (*x != TermId::NONE).then(|| t.shape(*x)).flatten().cloned());
        let rank = shape_of(self, 0).map(|s| s.len() as i64);
        let kernel = shape_of(self, 1).filter(|_| standard && matches!(op.name.as_str(), "Conv" | "ConvTranspose"));
        let mut out = Vec::new();
        for (name, a) in &op.attrs.0 {
            if standard && is_default(&op.name, name, a) {
                continue;
            }
            // Only training reads it.
            if standard && op.name == "BatchNormalization" && name == "momentum" && op.attrs.int("training_mode", 0) == 0 {
                continue;
            }
            if name == "kernel_shape"
                && let (Some(kernel), Attr::Ints(v)) = (&kernel, a)
                && kernel.get(2..).is_some_and(|k| k.iter().map(|d| d.known()).eq(v.iter().map(|v| Some(*v))))
            {
                continue;
            }
            let key = match a {
                Attr::Int(v) if standard && name == "axis" && *v < 0 && op.name != "OneHot" => {
                    AttrKey::Int(rank.map_or(*v, |r| v + r))
                }
                Attr::Int(v) => AttrKey::Int(*v),
                Attr::Float(v) => AttrKey::Float(v.to_bits()),
                Attr::Str(v) => AttrKey::Str(v.clone()),
                Attr::Ints(v) => AttrKey::Ints(v.clone()),
                Attr::Floats(v) => AttrKey::Floats(v.iter().map(|v| v.to_bits()).collect()),
                Attr::Tensor(t) => AttrKey::Const(self.constants.of_tensor(t)),
                Attr::Opaque(a) => AttrKey::Bytes(subgraph::canonical(a, captured)?),
            };
            out.push((name.clone(), key));
        }
        let softmax = matches!(op.name.as_str(), "Softmax" | "LogSoftmax" | "Hardmax");
        let by_default = if softmax {
            Some(if site.opset < 13 { 1 } else { -1 })
        } else {
            AXES.iter().find(|(o, _)| *o == op.name).map(|(_, axis)| *axis)
        };
        if standard
            && let Some(axis) = &by_default
            && op.attrs.get("axis").is_none()
        {
            let axis = if *axis < 0 { rank.map_or(*axis, |r| axis + r) } else { *axis };
            out.push(("axis".into(), AttrKey::Int(axis)));
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_one_operator_s() {
        let none = Attr::Str("none".into());
        assert!(is_default("ScatterND", "reduction", &none));
        assert!(!is_default("SoftmaxCrossEntropyLoss", "reduction", &none));
        assert!(is_default("Gemm", "alpha", &Attr::Float(1.0)) && !is_default("LeakyRelu", "alpha", &Attr::Float(1.0)));
    }
}

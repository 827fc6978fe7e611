//! Checks that read every label, before the first step.

use super::wanted::Target;
use crate::io::arrays::{Array, numpy_name};
use ancre_passes::ir::DType;

/// Samples that are checked at a time.
const CHUNK: usize = 4096;

/// Checks the target's values: class labels within the classes, binary targets within 0 and 1, integers that a float target
/// can hold. Streams over the array; the message names no file.
pub(super) fn check_target(array: &Array, wanted: &Target) -> Result<(), (String, String)> {
    let slot = &wanted.slot;
    let labels = wanted.has_labels();
    let binary = wanted.is_probability();
    // What a float32 (float64) counts exactly.
    let exact: i64 = if slot.dtype == DType::F64 { 1 << 53 } else { 1 << 24 };
    let widens = !array.dtype.is_float() && slot.dtype.is_float();
    if !labels && !binary && !widens {
        return Ok(());
    }
    let rows = array.shape.first().copied().unwrap_or(0);
    for start in (0..rows).step_by(CHUNK) {
        let Some(t) = array.rows(start..rows.min(start + CHUNK)) else { continue };
        let sample = |at: usize| start + at / array.row_len();
        let name = &array.name;
        if binary {
            let values = t.to_f64();
            if let Some(at) = values.iter().position(|v| !(0.0..=1.0).contains(v)) {
                let (row, bad) = (sample(at), values[at]);
                let what = format!(
                    "array `{name}`: sample {row} has the target {bad}; `{}` of the loss {} takes 0 to 1",
                    slot.name, wanted.loss
                );
                return Err((what, "give targets of 0 and 1, or rewrite with another --loss".into()));
            }
            continue;
        }
        let values = t.to_i64();
        if labels && let Some(at) = values.iter().position(|v| !is_label(*v, wanted)) {
            return Err(bad_label(name, sample(at), values[at], wanted));
        }
        if !labels && let Some(at) = values.iter().position(|v| v.abs() > exact) {
            let (row, bad, ty) = (sample(at), values[at], numpy_name(slot.dtype));
            let what = format!("array `{name}`: sample {row} holds {bad}, which {ty} cannot hold exactly");
            return Err((what, "scale the targets and save them as float32".into()));
        }
    }
    Ok(())
}

fn is_label(v: i64, wanted: &Target) -> bool {
    let below = wanted.classes.is_none_or(|n| usize::try_from(v).is_ok_and(|v| v < n));
    wanted.ignore_index == Some(v) || (v >= 0 && below)
}

fn bad_label(array: &str, row: usize, bad: i64, wanted: &Target) -> (String, String) {
    let range = match (wanted.classes, wanted.ignore_index) {
        (Some(n), Some(i)) => format!("0 to {} or {i}, which is ignored", n - 1),
        (Some(n), None) => format!("0 to {}", n - 1),
        _ => "0 and up".into(),
    };
    let help = match wanted.classes {
        Some(n) if usize::try_from(bad).is_ok_and(|v| v == n) => {
            "labels seem to count from 1: subtract 1; or rewrite the model with more --classes".to_string()
        }
        Some(_) if bad >= 0 => format!("rewrite the model with --classes {} or more, or correct the labels", bad + 1),
        _ => format!("correct the labels, or rewrite the model with --ignore-index={bad}"),
    };
    (format!("array `{array}`: sample {row} has the label {bad}; `{}` takes {range}", wanted.slot.name), help)
}

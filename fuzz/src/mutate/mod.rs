//! Damage to models on three levels: the bytes of a file, its messages, and changes after which a graph is another function.

mod bytes;
mod graph;
mod number;
mod tensor;
mod value;

use crate::case::Case;
use crate::seeds::Seed;
use crate::{below, pick};
use ancre_passes::random::Random;
use onnx_protobuf::{Message, ModelProto};

/// Largest file that is made.
const LARGEST: usize = 64 << 10;

/// A damaged model.
pub struct Mutant {
    /// The case.
    pub case: Case,
    /// What was done, in a few words each.
    pub done: Vec<&'static str>,
    /// Does it surely compute something else than the model it was made of?
    pub differs: bool,
}

/// Damages a model; parts may come from another one.
pub fn mutate(base: &Seed, donor: &Seed, r: &mut Random) -> Mutant {
    let options = if below(r, 4) == 0 { 1 + below(r, 1 << 20) as u32 } else { base.case.options };
    let made = |bytes, done, differs| Mutant { case: Case { bytes, options }, done, differs };
    let Some(model) = base.model.as_ref().filter(|_| below(r, 8) != 0) else {
        let done = vec!["bytes"];
        return made(bytes::damage(&base.case.bytes, &donor.case.bytes, r), done, false);
    };
    let mut model = model.clone();
    if below(r, 8) == 0 && value::change(&mut model, r) {
        return made(written(&model), vec!["another value"], true);
    }
    let mut done = Vec::new();
    for _ in 0..1 + below(r, 4) {
        done.push(change(&mut model, donor, r));
    }
    let bytes = written(&model);
    if bytes.len() > LARGEST {
        return made(base.case.bytes.clone(), vec!["nothing"], false);
    }
    made(bytes, done, false)
}

fn written(model: &ModelProto) -> Vec<u8> {
    model.write_to_bytes().unwrap_or_default()
}

/// Makes one change to a message; returns what it was.
fn change(m: &mut ModelProto, donor: &Seed, r: &mut Random) -> &'static str {
    match below(r, 40) {
        0 => {
            m.ir_version = if below(r, 2) == 0 { 3 + below(r, 11) as i64 } else { number::extreme(r) };
            "format version"
        }
        1 | 2 => {
            let version = if below(r, 4) == 0 { number::extreme(r) } else { 1 + below(r, 26) as i64 };
            if let Some(o) = m.opset_import.first_mut() {
                o.version = version;
            }
            "operator set"
        }
        3 => metadata(m, r),
        4 => graph::outline(m, r),
        5 => graph::break_function(m, r),
        n => {
            let other = donor.model.as_ref().and_then(|d| d.graph.as_ref());
            match m.graph.as_mut() {
                Some(g) if n < 10 => other.map_or("nothing", |d| graph::splice(g, d, r)),
                Some(g) if n < 30 => graph::change(g, r),
                Some(g) => tensor::change(g, r),
                None => "no graph",
            }
        }
    }
}

/// Damages what this tool wrote into a file.
fn metadata(m: &mut ModelProto, r: &mut Random) -> &'static str {
    if m.metadata_props.is_empty() {
        return "no metadata";
    }
    let at = below(r, m.metadata_props.len());
    let text = &mut m.metadata_props[at].value;
    let digits: Vec<usize> = text.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(i, _)| i).collect();
    match below(r, 4) {
        0 => {
            m.metadata_props.remove(at);
        }
        1 if !digits.is_empty() => {
            let at = *pick(r, &digits);
            let other = *pick(r, &["-1", "0", "9", "1e9", "18446744073709551615", "null", "[]"]);
            text.replace_range(at..=at, other);
        }
        2 => {
            let (from, to) = (below(r, text.len() + 1), below(r, text.len() + 1));
            if let Some(part) = text.get(from.min(to)..from.max(to)).map(str::to_string) {
                *text = text.replacen(&part, "", 1);
            }
        }
        _ => {
            let words: Vec<&str> = text.split('"').skip(1).step_by(2).collect();
            if words.len() > 1 {
                let (a, b) = (pick(r, &words).to_string(), pick(r, &words).to_string());
                *text = text.replacen(&format!("\"{a}\""), &format!("\"{b}\""), 1);
            }
        }
    }
    "metadata"
}

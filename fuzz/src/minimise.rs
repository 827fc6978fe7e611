//! Makes a case small while it still shows what it was found for.

use crate::case::Case;
use onnx_protobuf::{GraphProto, Message, ModelProto};

/// A smaller case. `shows` says whether a case still shows the finding.
pub fn minimise(case: &Case, mut shows: impl FnMut(&Case) -> bool) -> Case {
    let mut best = case.clone();
    let plain = Case { options: 0, ..best.clone() };
    if best.options != 0 && shows(&plain) {
        best = plain;
    }
    if let Ok(model) = ModelProto::parse_from_bytes(&best.bytes)
        && let Some(encoded) = encoded(&model, best.options)
        && shows(&encoded)
    {
        return of_message(model, encoded, &mut shows);
    }
    of_bytes(best, &mut shows)
}

fn encoded(model: &ModelProto, options: u32) -> Option<Case> {
    Some(Case { bytes: model.write_to_bytes().ok()?, options })
}

/// Removes runs of bytes, long ones first.
fn of_bytes(mut best: Case, shows: &mut impl FnMut(&Case) -> bool) -> Case {
    let mut length = best.bytes.len() / 2;
    while length > 0 {
        let mut at = 0;
        while at < best.bytes.len() {
            let mut less = best.clone();
            less.bytes.drain(at..(at + length).min(best.bytes.len()));
            if shows(&less) {
                best = less;
            } else {
                at += length;
            }
        }
        length /= 2;
    }
    best
}

/// A way to make a message smaller at a place; false where there is no such place.
type Reduction = fn(&mut ModelProto, usize) -> bool;

fn remove<T>(of: &mut Vec<T>, at: usize) -> bool {
    // From the end: what comes last is read by the fewest.
    let Some(place) = of.len().checked_sub(1 + at) else { return false };
    of.remove(place);
    true
}

fn in_graph(m: &mut ModelProto, change: impl FnOnce(&mut GraphProto) -> bool) -> bool {
    m.graph.as_mut().is_some_and(change)
}

const REDUCTIONS: [Reduction; 10] = [
    |m, at| in_graph(m, |g| remove(&mut g.node, at)),
    |m, at| {
        // A node's readers read its first operand.
        in_graph(m, |g| {
            let Some(place) = g.node.len().checked_sub(1 + at) else { return false };
            let gone = g.node.remove(place);
            let (Some(from), Some(to)) = (gone.output.first(), gone.input.first()) else { return true };
            g.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| *i == from).for_each(|i| i.clone_from(to));
            g.output.iter_mut().filter(|o| o.name == *from).for_each(|o| o.name.clone_from(to));
            true
        })
    },
    |m, at| in_graph(m, |g| remove(&mut g.initializer, at)),
    |m, at| in_graph(m, |g| remove(&mut g.input, at)),
    |m, at| in_graph(m, |g| remove(&mut g.output, at)),
    |m, at| in_graph(m, |g| remove(&mut g.value_info, at)),
    |m, at| remove(&mut m.metadata_props, at),
    |m, at| remove(&mut m.functions, at),
    |m, at| {
        in_graph(m, |g| {
            let mut at = at;
            for node in &mut g.node {
                if at < node.attribute.len() {
                    return remove(&mut node.attribute, at);
                }
                at -= node.attribute.len();
            }
            false
        })
    },
    |m, at| remove(&mut m.opset_import, at),
];

fn of_message(mut model: ModelProto, mut best: Case, shows: &mut impl FnMut(&Case) -> bool) -> Case {
    loop {
        let before = best.bytes.len();
        for reduce in REDUCTIONS {
            let mut at = 0;
            loop {
                let mut less = model.clone();
                if !reduce(&mut less, at) {
                    break;
                }
                match encoded(&less, best.options).filter(&mut *shows) {
                    Some(case) => (model, best) = (less, case),
                    None => at += 1,
                }
            }
        }
        if best.bytes.len() == before {
            return best;
        }
    }
}

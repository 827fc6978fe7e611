//! Attributes as keys: defaults left out, axes counted from the front, subgraphs with names that say nothing.

use super::canonical::Site;
use super::subgraph;
use super::term::{AttrKey, Table, TermId};
use crate::ir::{Attr, Op};
use crate::onnx::schema::meaning::{attribute, spoken};

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
        let mut said = spoken(op, site.opset);
        // The place of an axis depends on the rank: its default is written out too.
        if let Some(axis) = attribute(op, "axis", site.opset).filter(|_| !said.iter().any(|(name, _)| *name == "axis")) {
            said.push(("axis", axis));
        }
        let mut out = Vec::new();
        for (name, a) in said {
            // Only training reads it.
            if standard && op.name == "BatchNormalization" && name == "momentum" && op.int("training_mode") == 0 {
                continue;
            }
            if name == "kernel_shape"
                && let (Some(kernel), Attr::Ints(v)) = (&kernel, a.as_ref())
                && kernel.get(2..).is_some_and(|k| k.iter().map(|d| d.known()).eq(v.iter().map(|v| Some(*v))))
            {
                continue;
            }
            let key = match a.as_ref() {
                Attr::Int(v) if standard && name == "axis" && *v < 0 && op.name != "OneHot" => {
                    AttrKey::Int(rank.map_or(*v, |r| v + r))
                }
                Attr::Int(v) => AttrKey::Int(*v),
                Attr::Float(v) => AttrKey::Float(v.to_bits()),
                Attr::Str(v) => AttrKey::Str(v.clone()),
                Attr::Ints(v) => AttrKey::Ints(v.clone()),
                Attr::Floats(v) => AttrKey::Floats(v.iter().map(|v| v.to_bits()).collect()),
                Attr::Tensor(_) => match op.attrs.get(name) {
                    Some(Attr::Tensor(t)) => AttrKey::Const(self.constants.of_tensor(t)),
                    _ => return None,
                },
                Attr::Opaque(a) => {
                    AttrKey::Bytes(subgraph::canonical(a, captured).or_else(|| subgraph::as_written(a, captured))?)
                }
            };
            out.push((name.to_string(), key));
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Some(out)
    }
}

//! Folds what is constant: shape arithmetic over known dimensions and small constant tensors. Exact, by the
//! [evaluator](crate::ops::eval).
//!
//! Values stay in the width they have in the file. Large results are left to the runtime, so that folding never grows a file.

use crate::ir::{Graph, Kind, NodeId, ValueId, ValueType};
use crate::ops::eval::{Array, Exact, Facts, evaluate_node, only_moves};
use crate::ops::reads_values;
use std::borrow::Cow;

/// Largest result that is folded, in elements.
const LARGEST: usize = 1 << 16;

/// Folds every operator whose results are small constants; returns how many. The operators themselves are left for
/// [`super::eliminate`].
pub fn fold_constants(g: &mut Graph) -> usize {
    fold_where(g, |_, _| true)
}

/// As [`fold_constants`], asking of each operator whether it may.
pub fn fold_where(g: &mut Graph, mut allows: impl FnMut(&Graph, NodeId) -> bool) -> usize {
    let mut folded = 0;
    for id in g.topological_order() {
        let Some(arrays) = constants(g, id) else { continue };
        if !allows(g, id) {
            continue;
        }
        let before = g.node_count();
        let results: Vec<ValueId> = g.results(id).collect();
        for (old, array) in results.into_iter().zip(arrays) {
            let Some(tensor) = array.to_tensor().filter(|_| !g.is_output(old)) else { continue };
            let name = format!("{}.folded", g.name(old));
            let new = g.add_initializer(&name, tensor, false);
            g.replace_uses(old, new, |_| true);
        }
        folded += usize::from(g.node_count() > before);
    }
    folded
}

fn constants(g: &Graph, id: NodeId) -> Option<Vec<Array<Exact>>> {
    let Kind::Op(op) = &g.node(id).kind else { return None };
    // A result computed from floats may depend on parameters, some of which have one element.
    let fixed = only_moves(&op.name) || !g.operands(id).iter().flatten().any(|v| g.is_float(*v));
    if op.is("Identity") || !fixed || g.results(id).all(|v| g.is_output(v)) {
        return None;
    }
    evaluate_node(g, id, &Constants(g), LARGEST)
}

struct Constants<'g>(&'g Graph);

impl Facts<Exact> for Constants<'_> {
    fn array(&self, v: ValueId) -> Option<Cow<'_, Array<Exact>>> {
        let (g, t) = (self.0, self.0.constant(v)?);
        // A float initializer of the source may be a parameter, which is not folded.
        let own = matches!(g.node(v.node).kind, Kind::Initializer { .. }) && !g.name(v).ends_with(".folded");
        if t.dtype().is_float() && own && t.len() > 1 {
            return None;
        }
        Array::of_tensor(t, LARGEST).map(Cow::Owned)
    }

    fn ty(&self, v: ValueId) -> ValueType {
        self.0.value(v).ty.clone()
    }
}

/// Makes constants of the inputs with defaults that steer a graph: integers, and what an operator reads for a shape (the scales of a
/// `Resize`). Old tools list every initializer among the inputs, and nobody feeds those. Returns their names.
pub fn fix_defaults(g: &mut Graph) -> Vec<String> {
    let steers =
        |v: &ValueId| !g.is_float(*v) || g.uses(*v).any(|(n, operand)| g.op(n).is_some_and(|op| !reads_values(op, operand)));
    let defaults = g.inputs().iter().map(|n| g.result(*n, 0)).filter(|v| g.initializer(*v).is_some());
    let fixed: Vec<ValueId> = defaults.filter(steers).collect();
    fixed.iter().for_each(|v| g.set_overridable(*v, false));
    fixed.into_iter().map(|v| g.name(v).to_string()).collect()
}

//! Is a model quantised: does it compute with small integers, or with weights that it makes from them?

use super::head::{constant_origin, is_integer_product};
use crate::ir::{DType, Graph, NodeId, ValueId};
use crate::ops::{Class, passes_through};

/// The first node that shows it: an operator of quantised numbers, or the `Cast` of an integer matrix that becomes a weight.
pub fn find_quantised(g: &Graph) -> Option<NodeId> {
    g.topological_order().into_iter().find(|id| computes_quantised(g, *id) || widens_weight(g, *id))
}

fn computes_quantised(g: &Graph, id: NodeId) -> bool {
    let computes = |name: &str| {
        name.contains("QuantizeLinear") || name.starts_with("QLinear") || name == "QAttention" || is_integer_product(name)
    };
    g.op(id).is_some_and(|op| computes(&op.name))
}

fn widens_weight(g: &Graph, id: NodeId) -> bool {
    let small = |v: &ValueId| {
        let constant = g.constant(*v).or_else(|| g.initializer(*v));
        constant.is_some_and(|t| matches!(t.dtype(), DType::I8 | DType::U8 | DType::I4 | DType::U4) && t.dims().len() > 1)
    };
    g.is_op(id, "Cast")
        && g.is_float(g.result(id, 0))
        && g.operand(id, 0).is_some_and(|v| small(&v) && is_weight(g, g.result(id, 0), 8))
}

/// Is a value, perhaps scaled and shifted by constants, what a product, a convolution or a look-up has for its weight?
fn is_weight(g: &Graph, v: ValueId, depth: usize) -> bool {
    depth > 0
        && g.uses(v).any(|(node, operand)| {
            let Some(op) = g.op(node) else { return false };
            let is_constant = |o: ValueId| g.constant(o).is_some() || constant_origin(g, o).is_some();
            let scaled = matches!(op.name.as_str(), "Mul" | "Sub" | "Add" | "Div")
                && g.operands(node).iter().flatten().all(|o| *o == v || is_constant(*o));
            matches!(Class::of(op), Class::Mixing(_))
                || (op.is("Gather") && operand == 0)
                || ((scaled || passes_through(op)) && is_weight(g, g.result(node, 0), depth - 1))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    #[test]
    fn integer_weights_behind_a_cast_and_a_scale_are_quantised() {
        let net = |last: &str| {
            let head = "net (float[n, 2] x) => (float[n, 2] y)";
            let constants = "<int8[2, 2] q = {1, 2, 3, 4}, float[1, 2] scale = {0.5, 0.25}>";
            parse(&format!("{head} {constants} {{ c = Cast <to = 1> (q) w = Mul (c, scale) {last} }}")).unwrap()
        };
        let g = net("y = MatMul (x, w)");
        assert!(g.is_op(find_quantised(&g).unwrap(), "Cast"));
        // A mask that is stored in bytes is no weight.
        assert_eq!(find_quantised(&net("y = Add (x, w)")), None);
    }
}

//! Makes initializers of the float tensors that a file keeps in `Constant` nodes, where it keeps all its weights so.
//!
//! ```text
//!   before   w = Constant <value = …> ()   y = Conv (x, w)
//!   after    y = Conv (x, w) with w an initializer
//! ```
//!
//! A file whose initializers hold trained weights keeps literals of its source code in `Constant` nodes (a blur kernel, a grid):
//! those stay as they are. So do single numbers.

use crate::analysis::roles::initializer_roles;
use crate::ir::{Graph, NodeId, Tensor};

/// Makes the initializers; says how many. Values keep their names.
pub fn lift_constants(g: &mut Graph) -> usize {
    let constants: Vec<_> = g.topological_order().into_iter().filter_map(|id| Some((id, weight(g, id)?))).collect();
    if constants.is_empty() || initializer_roles(g).iter().any(|(_, role)| role.trains()) {
        return 0;
    }
    let lifted = constants.len();
    for (id, tensor) in constants {
        let v = g.result(id, 0);
        let name = g.name(v).to_string();
        let new = g.add_initializer(&format!("{name}.lifted"), tensor, false);
        g.replace_uses(v, new, |_| true);
        g.remove(id);
        g.rename(new, &name);
    }
    if lifted > 0 {
        // Before, an initializer had to be an input too.
        g.raise_ir(4);
    }
    lifted
}

/// The floats of a `Constant` node that can be an initializer: more than a number, read by nodes only.
fn weight(g: &Graph, id: NodeId) -> Option<Tensor> {
    let op = g.op(id).filter(|op| op.is("Constant"))?;
    let tensor = op.attrs.tensor("value").filter(|t| t.dtype().is_float() && (t.len() > 1 || t.dims().len() > 1))?;
    let v = g.result(id, 0);
    (!g.is_captured(v) && !g.is_output(v)).then(|| tensor.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::roles::Role;
    use crate::text::parse;
    use crate::verify::{Stage, verify};

    const CONSTANT: &str = "net (float[n, 2] x) => (y) { w = Constant <value = float[2, 2] {1, 2, 3, 4}> ()
        b = Constant <value = float[2] {0.5, 0.25}> () h = MatMul (x, w) y = Add (h, b) }";

    #[test]
    fn weights_in_constant_nodes_become_initializers() {
        let mut g = parse(CONSTANT).unwrap();
        assert_eq!(lift_constants(&mut g), 2);
        verify(&g, Stage::Open).unwrap();
        let roles: Vec<_> = initializer_roles(&g).into_iter().map(|(v, r)| (g.name(v), r)).collect();
        assert_eq!(roles, [("w", Role::Weight), ("b", Role::Bias)]);
        assert_eq!(lift_constants(&mut g), 0, "a second run finds nothing");
    }

    #[test]
    fn literals_beside_initializers_stay() {
        let mut g = parse(
            "net (float[n, 2] x) => (y) <float[2, 2] w = {…}> { h = MatMul (x, w)
            c = Constant <value = float[2] {0.5, 0.25}> () y = Add (h, c) }",
        )
        .unwrap();
        assert_eq!(lift_constants(&mut g), 0);
        assert!(g.initializer(g.find("c").unwrap()).is_none());
    }
}

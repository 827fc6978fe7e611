//! The head of a network: the last linear map before an output, and what belongs to it.

use crate::ir::{Graph, Kind, NodeId, ValueId};
use crate::ops::keeps_elements;
use std::collections::HashSet;

/// The last linear map before an output.
#[derive(Clone, Debug)]
pub struct Head {
    /// The `Gemm`, `MatMul` or `Conv`.
    pub node: NodeId,
    /// Which of its operands is the weight.
    pub operand: usize,
    /// The initializer the weight comes from, perhaps through a `Transpose` or the like.
    pub weight: ValueId,
    /// What the map reads.
    pub input: ValueId,
    /// Where the bias is added: node and operand, which comes from an initializer. `None`: there is no bias.
    pub bias: Option<(NodeId, usize)>,
}

/// The initializer behind a value that reaches it through operators which hand a constant on unchanged.
pub fn constant_origin(g: &Graph, mut v: ValueId) -> Option<ValueId> {
    loop {
        match &g.node(v.node).kind {
            Kind::Initializer { .. } => return Some(v),
            Kind::Op(op) if keeps_elements(op) || op.name == "FakeQuantize" => v = g.operand(v.node, 0)?,
            _ => return None,
        }
    }
}

/// The last linear map with a weight of its own on the way to `output`.
pub fn find_head(g: &Graph, output: ValueId) -> Option<Head> {
    let before = g.ancestors([output.node]);
    let order = g.topological_order();
    order.into_iter().rev().filter(|n| before.contains(n)).find_map(|n| linear_map(g, n))
}

/// The last product on the way to `output`, where its weight is stored as integers: a fresh one would have no scale.
pub fn quantised_head(g: &Graph, output: ValueId) -> Option<NodeId> {
    let before = g.ancestors([output.node]);
    let order = g.topological_order();
    let mut nodes = order.into_iter().rev().filter(|n| before.contains(n));
    nodes.find(|n| is_quantised(g, *n) || linear_map(g, *n).is_some()).filter(|n| is_quantised(g, *n))
}

/// Is it a product or a convolution with an operand of integers?
pub(super) fn is_integer_product(name: &str) -> bool {
    const PRODUCTS: [&str; 5] = ["QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"];
    matches!(name, "QLinearConv" | "QLinearMatMul") || PRODUCTS.contains(&name)
}

/// Is it a product with integers, or with floats that are made of a constant's?
fn is_quantised(g: &Graph, node: NodeId) -> bool {
    let is_constant = |v: Option<ValueId>| v.is_some_and(|v| constant_origin(g, v).is_some());
    let dequantised = |mut v: ValueId| loop {
        let (Some(op), Some(of)) = (g.op(v.node), g.operand(v.node, 0)) else { return false };
        match op.name.as_str() {
            "DequantizeLinear" => return is_constant(Some(of)),
            // Scaled by hand.
            "Mul" => {
                let mut casts = g.operands(v.node).iter().flatten().filter(|c| g.is_op(c.node, "Cast"));
                return casts.any(|c| is_constant(g.operand(c.node, 0)));
            }
            _ if keeps_elements(op) => v = of,
            _ => return false,
        }
    };
    g.op(node).is_some_and(|op| {
        is_integer_product(&op.name)
            || op.name == "MatMulNBits"
            || ["Gemm", "MatMul", "Conv"].contains(&op.name.as_str())
                && (0..2).any(|i| g.operand(node, i).is_some_and(dequantised))
    })
}

fn linear_map(g: &Graph, node: NodeId) -> Option<Head> {
    let op = g.op(node)?;
    let name = op.name.as_str();
    if !op.domain.is_empty() || !matches!(name, "Gemm" | "MatMul" | "Conv") {
        return None;
    }
    let (x, w) = (g.operand(node, 0)?, g.operand(node, 1)?);
    let (operand, weight, input) = match (constant_origin(g, w), constant_origin(g, x)) {
        (Some(weight), None) => (1, weight, x),
        (None, Some(weight)) if name != "Conv" => (0, weight, w),
        _ => return None,
    };
    let bias = match g.operand(node, 2) {
        Some(b) => constant_origin(g, b).map(|_| (node, 2)),
        None => added_bias(g, node),
    };
    Some(Head { node, operand, weight, input, bias })
}

/// The bias of `Add(map, bias)`. It has at most one extent above 1.
fn added_bias(g: &Graph, node: NodeId) -> Option<(NodeId, usize)> {
    let (add, operand) = g.single_use(g.result(node, 0))?;
    if !g.is_op(add, "Add") {
        return None;
    }
    let bias = 1 - operand;
    let other = g.operand(add, bias)?;
    constant_origin(g, other)?;
    let vector = g.tensor_type(other)?.shape.iter().filter(|d| !d.is_one()).count() <= 1;
    vector.then_some((add, bias))
}

/// The initializers that the head and what follows it read.
pub fn head_initializers(g: &Graph, head: &Head) -> HashSet<ValueId> {
    let after = g.descendants([head.node]);
    let fed = g.fed();
    let mut found = HashSet::new();
    let mut seen = HashSet::new();
    let mut open: Vec<ValueId> = after.iter().flat_map(|n| g.reads(*n)).collect();
    while let Some(v) = open.pop() {
        if fed.contains(&v.node) || !seen.insert(v) {
            continue;
        }
        if g.initializer(v).is_some() {
            found.insert(v);
        }
        open.extend(g.reads(v.node));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op, Tensor, TensorType};

    /// `y = Softmax(Add(MatMul(Relu(MatMul(x, a)), w), b))`
    fn network() -> Graph {
        let mut g = Graph::default();
        let ty = |d: &[i64]| TensorType::fixed(DType::F32, d).into();
        let x = g.add_input("x", ty(&[2, 3]), None);
        let mut v = x;
        for (name, dims) in [("a", [3, 4]), ("w", [4, 5])] {
            let w = g.add_initializer(name, Tensor::f32s(&dims, &vec![0.5; (dims[0] * dims[1]) as usize]), false);
            let n = g.add_op("", Op::new("MatMul", Attrs::new()), &[Some(v), Some(w)]);
            v = g.push_result(n, &format!("{name}.y"), ty(&[2, dims[1]]));
            if name == "a" {
                let n = g.add_op("", Op::new("Relu", Attrs::new()), &[Some(v)]);
                v = g.push_result(n, "h", ty(&[2, 4]));
            }
        }
        let b = g.add_initializer("b", Tensor::f32s(&[5], &[0.0; 5]), false);
        let n = g.add_op("", Op::new("Add", Attrs::new()), &[Some(b), Some(v)]);
        v = g.push_result(n, "logits", ty(&[2, 5]));
        let n = g.add_op("", Op::new("Softmax", Attrs::new()), &[Some(v)]);
        v = g.push_result(n, "y", ty(&[2, 5]));
        g.add_output(v, None);
        g
    }

    #[test]
    fn the_head_is_the_last_map_with_its_bias() {
        let g = network();
        let head = find_head(&g, g.find("y").unwrap()).unwrap();
        assert_eq!((g.name(head.weight), g.name(head.input)), ("w", "h"));
        let (add, operand) = head.bias.unwrap();
        assert_eq!((g.name(g.result(add, 0)), operand), ("logits", 0));
        let mut names: Vec<_> = head_initializers(&g, &head).into_iter().map(|v| g.name(v).to_string()).collect();
        names.sort();
        assert_eq!(names, ["b", "w"]);
    }

    #[test]
    fn a_product_of_two_values_is_no_head() {
        let mut g = Graph::default();
        let ty = TensorType::fixed(DType::F32, &[2, 2]);
        let x = g.add_input("x", ty.clone().into(), None);
        let n = g.add_op("", Op::new("MatMul", Attrs::new()), &[Some(x), Some(x)]);
        let y = g.push_result(n, "y", ty.into());
        assert!(find_head(&g, y).is_none());
    }
}

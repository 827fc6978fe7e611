//! Half-precision operators that an engine has no kernel for compute in float32, between casts.
//!
//! ```text
//!   before  y = Pad(x: bf16)
//!   after   y = Cast<bf16>(Pad(Cast<f32>(x)))
//! ```

use super::master::is_half;
use crate::ir::{Attrs, DType, Graph, NodeId, Op, Tensor, ValueId, ValueType};
use std::collections::{HashMap, HashSet};

/// Makes nodes compute in float32; returns how many. Nodes that state their result's type themselves, and nodes whose result a
/// subgraph reads, stay as they are.
pub fn compute_in_float32(g: &mut Graph, nodes: &[NodeId]) -> usize {
    let half = |g: &Graph, v: ValueId| g.value(v).ty.dtype.is_some_and(is_half);
    let mut wide: HashMap<ValueId, ValueId> = HashMap::new();
    let mut changed = HashSet::new();
    let mut count = 0;
    for &node in nodes {
        let Some(op) = g.op(node) else { continue };
        let stated = ["to", "dtype", "value"].iter().any(|name| op.attrs.get(name).is_some());
        let narrow: Vec<ValueId> = g.results(node).filter(|v| half(g, *v)).collect();
        let given = g.operands(node);
        let given = given.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?)));
        let operands: Vec<(usize, ValueId)> = given.filter(|(_, v)| half(g, *v)).collect();
        if stated || operands.is_empty() || narrow.iter().any(|v| g.is_captured(*v)) {
            continue;
        }
        for (i, v) in operands {
            let read = *wide.entry(v).or_insert_with(|| cast(g, node, v, DType::F32));
            g.set_operand(node, i, Some(read));
        }
        for v in narrow {
            let Some(dtype) = g.value(v).ty.dtype else { continue };
            let mut ty = g.value(v).ty.clone();
            ty.dtype = Some(DType::F32);
            g.set_type(v, ty);
            let back = cast(g, node, v, dtype);
            g.replace_uses(v, back, |n| n != back.node);
            if g.is_output(v) {
                g.swap_names(v, back);
                g.redirect_output(v, back);
            }
            changed.extend([v, back]);
        }
        count += 1;
    }
    g.forget_declarations(&changed);
    count
}

fn cast(g: &mut Graph, node: NodeId, v: ValueId, to: DType) -> ValueId {
    let mut ty = g.value(v).ty.clone();
    ty.dtype = Some(to);
    let stem = format!("{}/Cast", g.site(node).name);
    let id = g.add_op("", Op::new("Cast", Attrs::new().with("to", to.onnx() as i64)), &[Some(v)]);
    let result = g.push_result(id, &stem, ty);
    g.node_mut(id).name = g.name(result).to_string();
    result
}

/// Operators with a bfloat16 kernel on the CPU.
const ON_THE_CPU: &str = "Cast Identity Reshape Transpose Slice Concat Squeeze Unsqueeze Flatten Shape Size";

/// The nodes that touch bfloat16 and have no kernel for it on the CPU. Constant fills are written as casts.
pub fn everywhere(g: &mut Graph) -> Vec<NodeId> {
    let brain = |g: &Graph, v: ValueId| g.value(v).ty.dtype == Some(DType::BF16);
    let mut found = Vec::new();
    for node in g.topological_order() {
        let Some(op) = g.op(node).filter(|op| op.domain.is_empty()) else { continue };
        let named = ON_THE_CPU.split(' ').any(|name| name == op.name);
        if named || !g.results(node).chain(g.reads(node)).any(|v| brain(g, v)) {
            continue;
        }
        let fill = op.is("ConstantOfShape").then(|| op.attrs.tensor("value").and_then(|t| t.to_f64().ok())).flatten();
        let Some(value) = fill else {
            found.push(node);
            continue;
        };
        let v = g.result(node, 0);
        g.edit_attrs(node, |attrs| *attrs = std::mem::take(attrs).with("value", Tensor::floats(DType::F32, &[1], &value)));
        let ty = ValueType { dtype: Some(DType::F32), ..g.value(v).ty.clone() };
        g.set_type(v, ty);
        let back = cast(g, node, v, DType::BF16);
        g.replace_uses(v, back, |n| n != back.node);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::TensorType;
    use crate::verify;

    #[test]
    fn only_the_named_nodes_are_wide_and_outputs_keep_name_and_type() {
        let mut g = Graph::default();
        let ty = TensorType::fixed(DType::BF16, &[2, 3]);
        let x = g.add_input("x", ty.clone().into(), None);
        let n = g.add_op("a", Op::new("Floor", Attrs::new()), &[Some(x)]);
        let a = g.push_result(n, "a", ty.clone().into());
        let m = g.add_op("y", Op::new("Add", Attrs::new()), &[Some(a), Some(x)]);
        let y = g.push_result(m, "y", ty.clone().into());
        let k = g.add_op("z", Op::new("Reciprocal", Attrs::new()), &[Some(y)]);
        let z = g.push_result(k, "z", ty.clone().into());
        g.add_output(y, None);
        g.add_output(z, None);
        assert_eq!(compute_in_float32(&mut g, &[n, k]), 2);
        verify::verify(&g, verify::Stage::Open).unwrap();
        let of = |name: &str| g.tensor_type(g.find(name).unwrap()).unwrap().dtype;
        assert_eq!((of("x"), of("y"), of("z")), (DType::BF16, DType::BF16, DType::BF16));
        let operand = |n: NodeId| g.value(g.operand(n, 0).unwrap()).ty.dtype;
        assert_eq!((operand(n), operand(m), operand(k)), (Some(DType::F32), Some(DType::BF16), Some(DType::F32)));
        let outputs: Vec<_> = g.outputs().iter().map(|o| g.name(o.value).to_string()).collect();
        assert_eq!(outputs, ["y", "z"]);
        assert_eq!(g.op_count(), 3 + 4);
    }
}

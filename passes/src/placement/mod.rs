//! Which nodes of a training graph ONNX Runtime's CUDA provider has no kernel for. They would silently run on the CPU, with copies.
//!
//! A kernel is matched on the *schema version* of the node's operator (its latest version at or below the graph's opset): a
//! registry row `since..until` matches that range, an open row exactly `since`. `cuda_kernels.json` is the registry of the stock
//! provider (ONNX Runtime 1.31.1). Operator versions and their type constraints are those of [`crate::onnx::schema`].

use crate::ir::{DType, Graph, Kind, NodeId, Op};
use crate::onnx::schema::{self, Schema};
use crate::ops::blocks::NCHWC;
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The domain of the operators that ONNX Runtime has beyond the standard's.
const CONTRIB: &str = "com.microsoft";

/// A node that would run on the CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why.
    pub why: String,
}

#[derive(Deserialize)]
struct Kernel {
    since: i64,
    until: Option<i64>,
    types: HashMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
struct Registry {
    #[serde(rename = "ai.onnx")]
    standard: HashMap<String, Vec<Kernel>>,
    #[serde(rename = "com.microsoft")]
    contrib: HashMap<String, Vec<Kernel>>,
}

fn kernels(domain: &str, name: &str) -> &'static [Kernel] {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    // The file is part of the program; that it parses is a test.
    let r = REGISTRY.get_or_init(|| serde_json::from_str(include_str!("cuda_kernels.json")).unwrap_or_default());
    let rows = if domain.is_empty() { &r.standard } else { &r.contrib };
    rows.get(name).map(Vec::as_slice).unwrap_or_default()
}

/// Every node without a CUDA kernel at its opset and types; shape arithmetic, which ONNX Runtime keeps on the CPU on purpose,
/// is left out.
pub fn cuda_fallbacks(g: &Graph) -> Vec<Fallback> {
    g.topological_order()
        .into_iter()
        .filter(|id| !is_shape_arithmetic(g, *id))
        .filter_map(|id| {
            let why = fallback(g, id)?;
            let site = g.site(id);
            Some(Fallback { node: site.name, op: site.op, why })
        })
        .collect()
}

/// Nodes that touch bfloat16 and have no CUDA kernel for it. The CPU has no kernel for them either, so ONNX Runtime refuses the whole
/// model.
pub fn bfloat16_gaps(g: &Graph) -> Vec<NodeId> {
    let touches = |id: NodeId| {
        let operands = g.operands(id);
        g.results(id).chain(operands.iter().flatten().copied()).any(|v| g.value(v).ty.dtype == Some(DType::BF16))
    };
    let mut order = g.topological_order();
    order.retain(|id| touches(*id) && fallback(g, *id).is_some());
    order
}

/// Integer and boolean results from shapes and constants only.
fn is_shape_arithmetic(g: &Graph, id: NodeId) -> bool {
    let Kind::Op(op) = &g.node(id).kind else { return true };
    if matches!(op.name.as_str(), "Shape" | "Size" | "Constant" | "ConstantOfShape") {
        return true;
    }
    let integer = |t: Option<DType>| t.is_some_and(|t| matches!(t, DType::I64 | DType::I32 | DType::Bool));
    let small = |v| g.tensor_type(v).is_some_and(|t| t.rank() <= 1);
    g.results(id).all(|v| integer(g.value(v).ty.dtype) && small(v))
        && g.operands(id).iter().flatten().all(|v| integer(g.value(*v).ty.dtype))
        // A cast of a few numbers (an extent, the step counter) is no work either.
        || (op.is("Cast") && g.operand(id, 0).is_some_and(|v| integer(g.value(v).ty.dtype) && small(v)))
}

fn fallback(g: &Graph, id: NodeId) -> Option<String> {
    let Kind::Op(op) = &g.node(id).kind else { return None };
    if op.domain == NCHWC {
        return Some("the operator is the CPU provider's own".into());
    }
    if !["", CONTRIB].contains(&op.domain.as_str()) {
        return Some(format!("operator of domain {}; not checked", op.domain));
    }
    let opset = g.opsets.get(&op.domain).copied().unwrap_or(if op.domain.is_empty() { 18 } else { 1 });
    let Some(schema) = schema::at(&op.domain, &op.name, opset) else {
        return Some(format!("no operator of this name is known at version {opset} of its domain; not checked"));
    };
    let version = schema.since;
    let serves = |k: &&Kernel| k.until.map_or(k.since == version, |until| (k.since..=until).contains(&version));
    let rows: Vec<&Kernel> = kernels(&op.domain, &op.name).iter().filter(serves).collect();
    if rows.is_empty() {
        let inlined = schema.has_body() && op.name != "Celu";
        let of = if op.domain.is_empty() { String::new() } else { format!(" of {}", op.domain) };
        return (!inlined).then(|| format!("no CUDA kernel for version {} of the operator (opset {opset}{of})", version));
    }
    let reasons: Vec<String> = rows.iter().filter_map(|k| type_gap(g, id, schema, k)).collect();
    if reasons.len() == rows.len() {
        let bfloat = g.results(id).all(|v| g.value(v).ty.dtype == Some(DType::BF16));
        let inlined = schema.has_body() && bfloat && BFLOAT_BODIES.contains(&op.name.as_str());
        return reasons.into_iter().next().filter(|_| !inlined);
    }
    special(op)
}

/// Operators without a bfloat16 kernel whose function body has one for each of its operators: the body is inlined.
const BFLOAT_BODIES: [&str; 4] = ["ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"];

/// The first type of the node that a kernel does not take.
fn type_gap(g: &Graph, id: NodeId, schema: &Schema, kernel: &Kernel) -> Option<String> {
    let operands = g.operands(id);
    let of_operand =
        operands.iter().enumerate().filter_map(|(i, v)| Some((schema.operand(i)?.constraint, g.value((*v)?).ty.dtype?)));
    let results: Vec<_> = g.results(id).collect();
    let of_result =
        results.iter().enumerate().filter_map(|(i, v)| Some((schema.result(i)?.constraint, g.value(*v).ty.dtype?)));
    of_operand.chain(of_result).find_map(|(constraint, dtype)| {
        let taken = kernel.types.get(constraint)?;
        (!taken.iter().any(|t| t == dtype.onnx_name())).then(|| format!("the CUDA kernel does not take {dtype}"))
    })
}

/// Attributes that the provider's kernels refuse.
fn special(op: &Op) -> Option<String> {
    if op.domain == CONTRIB && op.name == "FusedConv" {
        // ONNX Runtime places the node on CUDA all the same, and then the session does not load.
        let activation = op.str("activation");
        return (activation != "Relu").then(|| format!("the CUDA kernel's only activation is Relu, not {activation}"));
    }
    if !op.is("ConvTranspose") {
        return None;
    }
    let auto = op.str("auto_pad");
    if auto.starts_with("SAME") {
        return Some(format!("ConvTranspose with auto_pad = {auto}"));
    }
    let pads = op.attrs.ints("pads").unwrap_or_default();
    let (begin, end) = pads.split_at(pads.len() / 2);
    (begin != end).then(|| "ConvTranspose with asymmetric pads".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, TensorType};

    fn one(op: Op, dtype: DType, opset: i64) -> Vec<Fallback> {
        let mut g = Graph::default();
        g.opsets.insert(String::new(), opset);
        let ty = TensorType::fixed(dtype, &[2, 3, 4, 4]);
        let x = g.add_input("x", ty.clone().into(), None);
        let n = g.add_op("n", op, &[Some(x)]);
        let y = g.push_result(n, "y", ty.into());
        g.add_output(y, None);
        cuda_fallbacks(&g)
    }

    #[test]
    fn the_tables_parse_and_know_the_traps() {
        assert!(!kernels("", "Conv").is_empty() && !kernels(CONTRIB, "FastGelu").is_empty());
        assert!(one(Op::new("Relu", Attrs::new()), DType::F32, 18).is_empty());
        assert!(one(Op::new("MaxPool", Attrs::new()), DType::F32, 18).is_empty());
        assert_eq!(one(Op::new("MaxPool", Attrs::new()), DType::F32, 22).len(), 1);
        assert_eq!(one(Op::new("Celu", Attrs::new()), DType::F32, 18).len(), 1);
        assert!(one(Op::new("Mish", Attrs::new()), DType::F32, 18).is_empty());
        assert_eq!(one(Op::new("Relu", Attrs::new()), DType::U16, 18)[0].why, "the CUDA kernel does not take u16");
        let pads = Attrs::new().with("pads", vec![0, 0, 1, 1]);
        assert_eq!(one(Op::new("ConvTranspose", pads), DType::F32, 18).len(), 1);
        let lower = Attrs::new().with("auto_pad", "SAME_LOWER");
        assert_eq!(one(Op::new("ConvTranspose", lower), DType::F32, 18).len(), 1);
        assert_eq!(one(Op::new("Reciprocal", Attrs::new()), DType::BF16, 18).len(), 1);
        assert!(one(Op::new("ReduceL1", Attrs::new()), DType::BF16, 18).is_empty());
    }

    #[test]
    fn operators_of_the_runtime_s_own_domain_are_in_the_tables() {
        let contrib = |name: &str, dtype| one(Op::in_domain(CONTRIB, name, Attrs::new()), dtype, 18);
        assert!(contrib("FastGelu", DType::F32).is_empty());
        assert!(contrib("SkipLayerNormalization", DType::BF16).is_empty());
        assert_eq!(contrib("Attention", DType::F64)[0].why, "the CUDA kernel does not take f64");
        assert_eq!(
            contrib("QLinearAdd", DType::F32)[0].why,
            "no CUDA kernel for version 1 of the operator (opset 1 of com.microsoft)"
        );
        assert!(contrib("NoSuchOperator", DType::F32)[0].why.ends_with("not checked"));
        for (activation, refused) in [("Relu", 0), ("LeakyRelu", 1)] {
            let op = Op::in_domain(CONTRIB, "FusedConv", Attrs::new().with("activation", activation));
            assert_eq!(one(op, DType::F32, 18).len(), refused, "{activation}");
        }
        assert!(one(Op::in_domain("com.example", "Relu", Attrs::new()), DType::F32, 18)[0].why.ends_with("not checked"));
        assert!(one(Op::new("SimplifiedLayerNormalization", Attrs::new()), DType::F32, 18).is_empty());
    }
}

//! tract as the oracle of types, in a process of its own: one question is one node with what is known of its operands.
//!
//! An engine that dies of a question is asked no more about that node; the value's type is then what our own rules and the file
//! say, and a notice names the node.

use super::child;
use super::wire::{Known, Reply, Request};
use ancre_passes::analysis::types::{Fact, Oracle, Walk, resolve_types};
use ancre_passes::ir::{ANCRE, DType, Dim, Graph, NodeId, SharedBytes, ValueId, ValueType};
use ancre_passes::onnx::{self, node_message};
use ancre_passes::ops::eval::{Array, Domain, Facts, Poly};
use onnx_protobuf::{
    GraphProto, Message, ModelProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto, type_proto,
};
use std::collections::HashMap;
use std::sync::Mutex;

static NOTICES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Takes the notices of engines that died while types were looked for.
pub fn notices() -> Vec<String> {
    NOTICES.lock().map(|mut all| std::mem::take(&mut *all)).unwrap_or_default()
}

/// Finds the type of every value of a graph, as well as that can be known.
pub fn find_types(g: &mut Graph) {
    #[cfg(feature = "tract")]
    if child::is_isolated() {
        resolve_types(g, Some(&mut Isolated::default()));
    } else {
        resolve_types(g, Some(&mut super::tract::TractOracle::default()));
    }
    #[cfg(not(feature = "tract"))]
    resolve_types(g, None);
}

#[derive(Default)]
struct Isolated(child::Oracle);

impl Oracle for Isolated {
    fn ask(&mut self, g: &Graph, node: NodeId, known: &dyn Facts<Poly>) -> Option<Vec<Fact>> {
        let (model, known) = question(g, node, known)?;
        match self.0.ask(&Request::Types { known }, &[&model]) {
            Ok((answer, _)) => match answer.ok()? {
                Reply::Types(types) => Some(types?.iter().map(fact).collect()),
                _ => None,
            },
            Err(how) => {
                let notice = format!("tract {how} when it was asked for the types of {}", g.site(node));
                if let Ok(mut all) = NOTICES.lock()
                    && !all.contains(&notice)
                {
                    all.push(notice);
                }
                None
            }
        }
    }
}

fn fact(known: &Known) -> Fact {
    Fact { ty: known.ty(), elements: known.elements().and_then(|(dims, extents)| array(dims, &extents)) }
}

fn array(dims: Vec<i64>, extents: &[Dim]) -> Option<Array<Poly>> {
    let elements = extents.iter().map(Poly::extent).collect::<Option<_>>()?;
    Some(Array { dtype: DType::I64, dims, elements })
}

fn known_of(ty: &ValueType, array: Option<&Array<Poly>>) -> Known {
    let elements = array.filter(|a| a.dtype == DType::I64).and_then(|a| Some((a.dims.clone(), a.extents()?)));
    Known::new(ty, elements)
}

/// The bytes of a model of one node, and what is known of the values that it reads, by name.
type Question = (Vec<u8>, Vec<(String, Known)>);

/// The question for a node; `None` if it cannot be put.
fn question(g: &Graph, node: NodeId, known: &dyn Facts<Poly>) -> Option<Question> {
    let mut graph = GraphProto { name: "question".into(), node: vec![node_message(g, node).ok()?], ..Default::default() };
    let mut facts = Vec::new();
    let named = |name: &str| ValueInfoProto { name: name.into(), ..Default::default() };
    let mut read: Vec<ValueId> = g.reads(node).collect();
    read.sort_unstable();
    read.dedup();
    for v in read {
        let name = g.name(v).to_string();
        let array = known.array(v);
        if let Some(t) = array.as_deref().and_then(Array::to_tensor) {
            let raw_data = t.bytes().ok()?.into_owned();
            let data_type = t.dtype().onnx();
            graph.initializer.push(TensorProto { name, dims: t.dims().to_vec(), data_type, raw_data, ..Default::default() });
            continue;
        }
        // The type follows; a file must state one.
        let tensor = type_proto::Tensor { elem_type: DType::F32.onnx(), ..Default::default() };
        let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
        graph.input.push(ValueInfoProto { type_: Some(ty).into(), ..named(&name) });
        facts.push((name, known_of(&known.ty(v), array.as_deref())));
    }
    graph.output = g.results(node).map(|v| g.name(v)).filter(|n| !n.is_empty()).map(named).collect();
    let version = |(domain, version): (&String, &i64)| OperatorSetIdProto {
        domain: domain.clone(),
        version: *version,
        ..Default::default()
    };
    let model = ModelProto {
        ir_version: 8,
        opset_import: g.opsets.iter().filter(|(domain, _)| *domain != ANCRE).map(version).collect(),
        graph: Some(graph).into(),
        ..Default::default()
    };
    Some((model.write_to_bytes().ok()?, facts))
}

/// What tract answers in the child.
pub(super) fn answer(model: Vec<u8>, known: &[(String, Known)]) -> Option<Vec<Known>> {
    let mut g = onnx::read(&SharedBytes::new(model), None).ok()?;
    let mut arrays = HashMap::new();
    for (name, known) in known {
        let v = g.find(name)?;
        g.set_type(v, known.ty());
        arrays.extend(fact(known).elements.map(|array| (v, array)));
    }
    let node = g.nodes().find(|n| g.op(*n).is_some())?;
    let facts = Walk { g: &g, arrays };
    #[cfg(feature = "tract")]
    let answered = super::tract::TractOracle::default().ask(&g, node, &facts);
    #[cfg(not(feature = "tract"))]
    let answered: Option<Vec<Fact>> = None.filter(|_: &Vec<Fact>| facts.ty(g.result(node, 0)).dtype.is_some());
    Some(answered?.into_iter().map(|f| known_of(&f.ty, f.elements.as_ref())).collect())
}

#[cfg(test)]
#[cfg(feature = "tract")]
mod tests {
    use super::*;
    use ancre_passes::ir::{Attrs, Op, Tensor, TensorType};

    #[test]
    fn a_question_says_all_there_is_to_know() {
        // y = Reshape(x, [12 n, -1]), the target computed
        let mut g = Graph::default();
        g.opsets.insert(String::new(), 18);
        let n = Dim::symbol("batch size");
        let x = g.add_input("x", TensorType::new(DType::F32, [n.clone(), Dim::from(24), Dim::from(8)]).into(), None);
        let target = g.add_input("target", TensorType::fixed(DType::I64, &[2]).into(), None);
        let reshape = g.add_op("view", Op::new("Reshape", Attrs::new()), &[Some(x), Some(target)]);
        let y = g.push_result(reshape, "y", ValueType::default());
        let perm = g.add_initializer("scales", Tensor::f32s(&[2], &[1.0, 2.0]), false);
        let resize = g.add_op("wider", Op::new("Resize", Attrs::new()), &[Some(y), None, Some(perm)]);
        g.push_result(resize, "z", ValueType::default());
        let extents = array(vec![2], &[&n * &Dim::from(12), Dim::from(-1)]).unwrap();
        let mut facts = Walk { g: &g, arrays: HashMap::from([(target, extents)]) };
        let ask = |facts: &Walk<&Graph>, node| {
            let (model, known) = question(facts.g, node, facts).unwrap();
            answer(model, &known).unwrap().remove(0).ty()
        };
        assert_eq!(ask(&facts, reshape).to_string(), "f32[12*batch size,16]");
        let mut typed = g.clone();
        typed.set_type(y, TensorType::new(DType::F32, [n, Dim::from(16)]).into());
        facts.g = &typed;
        assert_eq!(ask(&facts, resize).to_string(), "f32[batch size,32]");
    }
}

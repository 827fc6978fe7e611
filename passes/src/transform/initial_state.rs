//! The state that a training graph starts from, outside the graph: its inputs ask for it then, and a graph of its own gives it.
//!
//! ONNX Runtime's bindings differ in what they do with an input that has a default. Some refuse its name, and one drops what is fed
//! to it without a word, so that nothing trains. An input without a default cannot be forgotten.

use crate::contract::{Names, Record, StateFrom, StateRecord, States};
use crate::ir::{Attrs, DType, Graph, Kind, Op, Tensor, TensorError, TensorType, ValueId};

/// The first value of a state tensor.
#[derive(Clone, Debug)]
pub struct FirstValue {
    /// Name of the input that takes it.
    pub name: String,
    /// Its shape.
    pub dims: Vec<i64>,
    /// All elements, or one that all are equal to.
    pub elements: Tensor,
}

impl FirstValue {
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.elements.dtype()
    }

    /// Does one element stand for all?
    pub fn is_uniform(&self) -> bool {
        self.elements.len() == 1 && self.dims != self.elements.dims()
    }
}

/// An output of a graph of a first state that is no constant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its output `{output}` is no constant: {found}; constants, Identity and ConstantOfShape were expected")]
pub struct NotConstant {
    /// The output.
    pub output: String,
    /// The node that computes it.
    pub found: String,
}

/// Takes the defaults out of a training graph's state inputs, which have to be fed then, and out of those of graphs that carry the same
/// state. Returns the training graph's in the order of `states`. `from` says where they are found.
pub fn require_state<'g>(
    training: &mut Graph,
    others: impl IntoIterator<Item = &'g mut Graph>,
    states: &[StateRecord],
    from: StateFrom,
) -> Vec<FirstValue> {
    others.into_iter().for_each(|g| drop(require(g, states, from)));
    require(training, states, from)
}

fn require(g: &mut Graph, states: &[StateRecord], from: StateFrom) -> Vec<FirstValue> {
    if let Ok(Some(names)) = Names::read(g) {
        Names { state_from: from, ..names }.write(g);
    }
    let mut first = Vec::new();
    for s in states {
        let Some(v) = g.find(&s.input).filter(|v| g.initializer(*v).is_some()) else { continue };
        let dtype = g.value(v).ty.dtype.unwrap_or(DType::F32);
        if let Some(elements) = g.require_input(v, TensorType::fixed(dtype, &s.shape).into()) {
            first.push(FirstValue { name: s.input.clone(), dims: s.shape.clone(), elements });
        }
    }
    first
}

/// A graph without inputs that gives every state tensor under the name of its input in `training`. Weights are referred to
/// where they lie; a tensor of equal elements takes no room.
///
/// # Errors
/// When the element that stands for a whole tensor cannot be read.
pub fn init_graph(training: &Graph, first: &[FirstValue]) -> Result<Graph, TensorError> {
    let mut g = Graph::default();
    g.home = training.home.clone();
    g.opsets.extend(training.opsets.get("").map(|v| (String::new(), *v)));
    if let Some(states) = training.metadata.get(States::KEY) {
        g.metadata.insert(States::KEY.into(), states.clone());
    }
    for f in first {
        let ty = TensorType::fixed(f.dtype(), &f.dims);
        let stem = format!("ancre.init/{}", f.name);
        let (op, operand) = if f.is_uniform() {
            let dims = Tensor::i64s(&[f.dims.len() as i64], &f.dims);
            let value = Tensor::from_bytes(f.dtype(), &[1], f.elements.bytes()?.into_owned());
            (Op::new("ConstantOfShape", Attrs::new().with("value", value)), dims)
        } else {
            (Op::new("Identity", Attrs::new()), f.elements.clone())
        };
        let operand = g.add_initializer(&stem, operand, false);
        let node = g.add_op(&stem, op, &[Some(operand)]);
        let v = g.push_result(node, &f.name, ty.into());
        g.add_output(v, None);
    }
    Ok(g)
}

/// The first state that such a graph gives.
///
/// # Errors
/// The first output that is computed from anything but constants.
pub fn first_values(g: &Graph) -> Result<Vec<FirstValue>, NotConstant> {
    let value = |v: ValueId| {
        let not = || NotConstant { output: g.name(v).to_string(), found: found(g, v) };
        let (dims, elements) = constant(g, v).ok_or_else(not)?;
        Ok(FirstValue { name: g.name(v).to_string(), dims, elements })
    };
    g.outputs().iter().map(|o| value(o.value)).collect()
}

fn constant(g: &Graph, mut v: ValueId) -> Option<(Vec<i64>, Tensor)> {
    while g.is_op(v.node, "Identity") {
        v = g.operand(v.node, 0)?;
    }
    if g.is_op(v.node, "ConstantOfShape") {
        let dims = g.constant(g.operand(v.node, 0)?)?.to_i64().ok()?;
        let zero = || Tensor::floats(DType::F32, &[1], &[0.0]);
        let element = g.op(v.node)?.attrs.tensor("value").cloned().unwrap_or_else(zero);
        return (element.len() == 1).then_some((dims, element));
    }
    let tensor = g.constant(v)?;
    Some((tensor.dims().to_vec(), tensor.clone()))
}

fn found(g: &Graph, v: ValueId) -> String {
    match g.node(v.node).kind {
        Kind::Input(_) => "an input".into(),
        _ => format!("{} is in its way", g.site(v.node)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::StateKind;
    use crate::onnx;

    /// y = w · x with a moment of `w`, both state.
    fn training() -> (Graph, Vec<StateRecord>) {
        let mut g = Graph::default();
        let ty = TensorType::fixed(DType::F32, &[2, 3]);
        let x = g.add_input("x", ty.clone().into(), None);
        let w = g.add_initializer("w", Tensor::f32s(&[2, 3], &[1., 2., 3., 4., 5., 6.]), true);
        let m = g.add_initializer("w.m", Tensor::f32s(&[1, 1], &[0.0]), true);
        let t = g.add_initializer("step", Tensor::i64s(&[], &[7]), true);
        for (name, operands) in [("y", [x, w]), ("z", [x, m]), ("step.next", [t, t])] {
            let node = g.add_op(name, Op::new("Mul", Attrs::new()), &operands.map(Some));
            let ty = g.value(operands[0]).ty.clone();
            let v = g.push_result(node, name, ty);
            g.add_output(v, None);
        }
        let states = vec![
            StateRecord::new("w", StateKind::Parameter, vec![2, 3]),
            StateRecord::new("w.m", StateKind::Moment, vec![2, 3]),
            StateRecord::new("step", StateKind::Counter, vec![]),
        ];
        States(states.clone()).write(&mut g);
        (g, states)
    }

    #[test]
    fn what_the_init_graph_gives_is_what_the_training_graph_asks_for() {
        let (mut g, states) = training();
        let first = require_state(&mut g, [], &states, StateFrom::Init);
        let required: Vec<String> = g.required_inputs().map(|v| g.name(v).to_string()).collect();
        assert_eq!(required, ["x", "w", "w.m", "step"]);
        let moment = g.find("w.m").unwrap();
        assert_eq!(g.tensor_type(moment).unwrap().known_dims().unwrap(), [2, 3]);
        let bytes = onnx::emit(&init_graph(&g, &first).unwrap()).unwrap().to_bytes().unwrap();
        let read = onnx::read(&crate::ir::SharedBytes::new(bytes), None).unwrap();
        assert!(read.inputs().is_empty() && States::is_in(&read));
        let back = first_values(&read).unwrap();
        let names: Vec<&str> = back.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["w", "w.m", "step"]);
        assert_eq!(back[0].elements.to_f32().unwrap(), [1., 2., 3., 4., 5., 6.]);
        assert!(back[1].is_uniform() && back[1].dims == [2, 3] && back[1].elements.to_f32().unwrap() == [0.0]);
        assert!(!back[2].is_uniform() && back[2].elements.to_i64().unwrap() == [7] && back[2].dims.is_empty());
    }

    #[test]
    fn a_graph_that_computes_its_state_is_refused_by_name() {
        let (g, _) = training();
        let e = first_values(&g).unwrap_err();
        assert_eq!(e.output, "y");
        assert!(e.to_string().contains("node `y` (Mul)"), "{e}");
    }
}

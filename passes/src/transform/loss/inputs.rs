//! Inputs that losses add to a graph: targets, weights of positions, lengths of sequences.

use super::LossError;
use super::plan::Plan;
use crate::ir::{DType, Graph, TensorType, ValueId};

/// An input that losses share.
pub(super) struct Input {
    output: ValueId,
    ty: TensorType,
    name: String,
    /// Is the name the user's?
    named: bool,
    value: Option<ValueId>,
}

impl Input {
    pub(super) fn want(all: &mut Vec<Input>, output: ValueId, ty: &TensorType, name: String, named: bool) {
        if !all.iter().any(|i| i.output == output && i.ty == *ty) {
            all.push(Input { output, ty: ty.clone(), name, named, value: None });
        }
    }

    /// Its value; it becomes an input of the graph the first time. A value of the model keeps its name.
    pub(super) fn add(all: &mut [Input], g: &mut Graph, output: ValueId, ty: &TensorType) -> ValueId {
        let several = all.len() > 1;
        let made = all.iter().position(|i| i.output == output && i.ty == *ty);
        let Some(input) = made.map(|i| &mut all[i]) else { return output };
        if let Some(v) = input.value {
            return v;
        }
        let wanted = if several && !input.named { format!("{}.{}", g.name(output), input.name) } else { input.name.clone() };
        let name = if g.is_free(&wanted) { wanted } else { format!("ancre.{wanted}") };
        *input.value.insert(g.add_input(&name, ty.clone().into(), None))
    }

    /// What weights the positions of a loss: an input of the model that has the name, or a new one.
    pub(super) fn mask(
        all: &mut [Input],
        g: &mut Graph,
        p: &Plan,
        target: Option<ValueId>,
        name: &str,
    ) -> Result<ValueId, LossError> {
        if target.is_some_and(|v| g.name(v) == name) {
            return Err(LossError::Unfit(format!(
                "output `{}`: `{name}` is its target; a mask needs another name",
                g.name(p.output)
            )));
        }
        let own = g.required_inputs().find(|v| g.name(*v) == name && !all.iter().any(|i| i.value == Some(*v)));
        let Some(own) = own else { return Ok(Input::add(all, g, p.output, &p.positions)) };
        let rank = g.tensor_type(own).map(|ty| ty.rank());
        if rank.is_none_or(|rank| rank > p.positions.rank()) {
            return Err(LossError::Unfit(format!(
                "input `{name}` {} cannot weight the positions {} of output `{}`",
                g.value(own).ty,
                p.positions,
                g.name(p.output)
            )));
        }
        Ok(own)
    }
}

/// An input of CTC's lengths, [N].
pub(super) fn add_lengths(g: &mut Graph, p: &Plan, name: &str, several: bool) -> ValueId {
    let wanted = if several { format!("{}.{name}", g.name(p.output)) } else { name.to_string() };
    let name = if g.is_free(&wanted) { wanted } else { format!("ancre.{wanted}") };
    g.add_input(&name, TensorType::new(DType::I64, p.positions.shape.clone()).into(), None)
}

//! Which initializers become state.

use super::training::TrainableChoice;
use super::{Choice, Cx, PassError};
use crate::analysis::head::{find_head, head_initializers};
use crate::analysis::roles::{QUANTISATION_SCALE, Role, initializer_roles};
use crate::contract::{AdaptersRecord, Fresh, Record, StateKind, StateRecord};
use crate::ir::{DType, Graph, Kind, NodeId};
use crate::refusal::Hint;
use crate::transform::{control_flow, glob};
use std::collections::HashSet;

/// Chooses the initializers that train, and notes why the others do not.
pub(super) fn choose(g: &Graph, cx: &mut Cx) -> Result<(), PassError> {
    match &cx.choice {
        Choice::Named(names) => {
            let chosen = |n: &String| Ok((super::context::value(g, n)?, StateKind::Parameter));
            cx.chosen = names.iter().map(chosen).collect::<Result<_, PassError>>()?;
        }
        Choice::State(states) => {
            let ours = [StateKind::Parameter, StateKind::Scale, StateKind::Logits, StateKind::Gate, StateKind::Statistic];
            for s in states.iter().filter(|s| ours.contains(&s.kind)) {
                if let Some(v) = g.find(&s.name).filter(|v| g.initializer(*v).is_some()) {
                    cx.chosen.push((v, s.kind));
                    cx.states.push(StateRecord { output: None, in_place: false, ..s.clone() });
                }
            }
        }
        Choice::Training => {
            by_role(g, cx)?;
            for r in g.routers.values().filter(|r| r.trains()) {
                cx.chosen.push((r.logits, StateKind::Logits));
                cx.chosen.extend(r.gate.map(|gate| (gate, StateKind::Gate)));
            }
            if cx.chosen.is_empty() {
                return Err(nothing_trains(g, cx));
            }
        }
    }
    Ok(())
}

/// Why a parameter does not train that would without an option.
const BY_OPTION: &str = "frozen by option";

fn nothing_trains(g: &Graph, cx: &Cx) -> PassError {
    if let Some((name, _)) = cx.frozen.iter().find(|(_, why)| why == BY_OPTION) {
        let what = format!("nothing would train: all parameters that could (`{name}`, for one) are frozen by option");
        return PassError::Unfit { what, hint: Some(Hint::FreezeLess) };
    }
    let reads_weights = |id: &NodeId| g.reads(*id).any(|v| g.is_float(v) && g.initializer(v).is_some());
    let inside =
        g.topological_order().into_iter().filter(reads_weights).find_map(|id| Some((id, control_flow::refusal(g, id)?)));
    let (what, hint) = match inside {
        Some((id, why)) => (format!("its weights are read inside {}, and {why}", g.site(id)), why.hint()),
        None => no_parameter(g),
    };
    PassError::Unfit { what: format!("nothing would train: {what}"), hint }
}

/// Why a model has no parameter, where control flow hides none.
fn no_parameter(g: &Graph) -> (String, Option<Hint>) {
    let constants = g.nodes().filter(|n| matches!(g.node(*n).kind, Kind::Initializer { .. })).map(|n| g.result(n, 0));
    if let Some(v) = constants.filter(|v| g.is_float(*v)).find(|v| !g.name(*v).starts_with("ancre.")) {
        let what = format!("none of the model's float tensors (`{}`, for one) is a parameter by its use", g.name(v));
        return (what, Some(Hint::NameTrainable));
    }
    // Classical models, as sklearn's converters write them.
    let classical = g.topological_order().into_iter().find(|id| g.op(*id).is_some_and(|o| o.domain == "ai.onnx.ml"));
    match classical {
        Some(id) => (format!("the numbers of {} are attributes, which have no gradient", g.site(id)), None),
        None => ("the model holds no float tensor".into(), None),
    }
}

/// Chooses by role and name. A parameter may have another name in the source, that of the tensor into which the exporter had merged it
/// or of its transpose. Both names match.
fn by_role(g: &Graph, cx: &mut Cx) -> Result<(), PassError> {
    let (choice, aliases): (&TrainableChoice, _) = (&cx.training.trainable, &cx.aliases);
    let both = |name: &str| [Some(name.to_string()), aliases.get(name).cloned()].into_iter().flatten().collect::<Vec<_>>();
    let matches = |patterns: &[String], name: &str| both(name).iter().any(|n| patterns.iter().any(|p| glob(p, n)));
    let known = |n: &String| g.find(n).and_then(|v| g.initializer(v)).is_some() || aliases.values().any(|other| other == n);
    if let Some(missing) = choice.exactly.iter().flatten().find(|n| !known(n)) {
        let what = format!("the list of what trains names `{missing}`, which is no initializer of the model");
        return Err(PassError::Unfit { what, hint: Some(Hint::CorrectTrainableList) });
    }
    let adapters = AdaptersRecord::read(g).ok().flatten().filter(|_| choice.adapters_only);
    let of_adapters: HashSet<&str> = adapters.iter().flat_map(AdaptersRecord::tensors).collect();
    let fresh = Fresh::read(g).ok().flatten().filter(|_| choice.adapters_only).unwrap_or_default();
    let head = if choice.head_only || fresh.all {
        let output = cx.training.output_of(g, &cx.training.loss)?;
        let head = find_head(g, output).ok_or_else(|| PassError::Unfit {
            what: format!(
                "no linear map (Gemm, MatMul, Conv) lies before output `{}`: there is no head to train",
                g.name(output)
            ),
            hint: Some(Hint::TrainBackbone),
        })?;
        Some(head_initializers(g, &head))
    } else {
        None
    };
    for (v, role) in initializer_roles(g) {
        let name = g.name(v);
        if name.starts_with("ancre.") || !cx.own.contains(name) {
            continue;
        }
        let is_fresh = both(name).iter().any(|n| fresh.tensors.contains(n));
        let in_head = match (&head, choice.adapters_only) {
            (Some(head), _) => head.contains(&v) || is_fresh,
            (None, only_adapters) => !only_adapters || is_fresh,
        };
        if role == Role::Frozen(QUANTISATION_SCALE)
            && cx.training.qat.trains_scales()
            && g.tensor_type(v).is_some_and(|t| t.dtype == DType::F32)
            && !g
                .uses(v)
                .any(|(n, _)| g.op(n).is_some_and(|op| matches!(op.name.as_str(), "QuantizeLinear" | "DequantizeLinear")))
            && !matches(&choice.frozen, name)
        {
            cx.chosen.push((v, StateKind::Scale));
            continue;
        }
        let by_role = match &choice.exactly {
            _ if of_adapters.contains(name) => true,
            Some(names) => both(name).iter().any(|n| names.contains(n)),
            None => (role.trains() && in_head) || matches(&choice.also, name),
        };
        if by_role && !matches(&choice.frozen, name) {
            cx.chosen.push((v, StateKind::Parameter));
        } else if role != Role::Statistic {
            let why = match (role.trains(), in_head) {
                (true, false) if choice.adapters_only => "base of adapters",
                (true, false) => "backbone",
                (true, true) => BY_OPTION,
                (false, _) => role.name(),
            };
            cx.frozen.push((name.to_string(), why.to_string()));
        }
    }
    for pattern in choice.also.iter().chain(&choice.frozen) {
        let one = std::slice::from_ref(pattern);
        if !g.nodes().any(|n| matches!(g.node(n).kind, Kind::Initializer { .. }) && matches(one, g.name(g.result(n, 0)))) {
            return Err(PassError::unfit(format!("no initializer matches the pattern `{pattern}`")));
        }
    }
    Ok(())
}

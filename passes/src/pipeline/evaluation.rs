//! The evaluation graph: forward and loss, no updates. Normalisations and dropouts are as in evaluation; the state that a training
//! graph carries (parameters, router, running statistics) can be fed under the same names.

use super::training::{TrainingError, TrainingOptions, after, describe_loss, loss_output, rebatch};
use crate::ir::{Graph, ValueId};
use crate::transform::loss::append_loss;
use crate::transform::optimizer::{StateKind, StateRecord};
use crate::transform::{eliminate, fold, legalize, lower_routes, master, separate, tie};
use crate::verify;

/// Builds the evaluation graph of a routed (not yet lowered) graph, which it consumes, to the training graph with this state.
/// Returns it with the state it takes.
///
/// # Errors
/// As for the training graph.
pub fn build_evaluation_graph(
    mut g: Graph,
    states: &[StateRecord],
    o: &TrainingOptions,
) -> Result<(Graph, Vec<StateRecord>), TrainingError> {
    let output = loss_output(&g, o.output.as_deref()).map_err(TrainingError::Unfit)?;
    let output_name = g.name(output).to_string();
    let outputs: Vec<ValueId> = g.outputs().iter().map(|o| o.value).collect();
    separate::separate_parameters(&mut g, separate::is_own);
    if let Some(to) = o.batch {
        rebatch(&mut g, to)?;
    }
    tie::tie_parameters(&mut g)?;
    legalize::decompose_contrib(&mut g);
    legalize::to_opset(&mut g, o.opset.unwrap_or(legalize::TARGET).max(legalize::LOWEST))?;
    fold::fold_constants(&mut g);
    after(&g, "fold-constants")?;
    let mut taken = Vec::new();
    for s in states {
        let ours = matches!(s.kind, StateKind::Parameter | StateKind::Logits | StateKind::Gate | StateKind::Statistic);
        if let Some(v) = g.find(&s.name).filter(|v| ours && g.initializer(*v).is_some()) {
            g.set_overridable(v, true);
            master::master_copies(&mut g, &[v])?;
            taken.push(StateRecord { output: None, in_place: false, ..s.clone() });
        }
    }
    let loss = append_loss(&mut g, output, &o.loss)?;
    after(&g, "append-loss")?;
    let target = g.name(loss.target).to_string();
    let infos: Vec<_> = g.outputs().iter().map(|o| (o.value, o.info.clone())).collect();
    g.clear_outputs();
    g.add_output(loss.value, None);
    for (v, info) in infos.into_iter().filter(|(v, _)| outputs.contains(v) && *v != loss.value) {
        g.add_output(v, info);
    }
    lower_routes::lower_routes(&mut g)?;
    after(&g, "lower-routes")?;
    eliminate::eliminate_dead(&mut g, |_, _| false);
    verify::verify(&g, verify::Stage::Legal).map_err(TrainingError::Invalid)?;
    g.metadata.insert("ancre.state".into(), serde_json::to_string(&taken).unwrap_or_default());
    describe_loss(&mut g, o, &output_name, &target);
    Ok((g, taken))
}

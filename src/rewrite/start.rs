//! Changes to the source before anything else: another classifier, fresh weights. All that follows, verification too, takes the
//! changed model for the source.

use crate::error::{Failure, sentence};
use crate::rewrite::config::Start;
use ancre_passes::analysis::stored::stored_weights;
use ancre_passes::contract::{Fresh, Record};
use ancre_passes::ir::Graph;
use ancre_passes::transform::loss::loss_output;
use ancre_passes::transform::reinit::{self, Normalisation};
use ancre_passes::transform::{classes, separate, tie};
use std::path::Path;

/// Applies `--classes` and `--reinit`; says whether anything was asked for. Fails when there is no classifier to replace, or
/// something after it depends on the number of classes.
/// `output` is that whose head is replaced; `None`: the only float one.
pub(super) fn change(
    start: &Start,
    output: Option<&str>,
    model: &Path,
    g: &mut Graph,
    notices: &mut Vec<String>,
) -> Result<bool, Failure> {
    if start.from_scratch || start.trains {
        notices.extend(lost_normalisation(g, start.from_scratch));
    }
    if start.classes.is_none() && start.reinit.is_none() {
        return Ok(false);
    }
    let fail = |e: String| Failure::input(e).at(model);
    if start.reinit.is_some() && !stored_weights(g).is_empty() {
        let what = "--reinit: the model's weights are stored as integers, in ranges that fit what they are";
        return Err(fail(what.into()).help("train the float model from scratch and quantise the result"));
    }
    let mut fresh = Fresh { all: start.reinit.is_some(), tensors: Vec::new() };
    if let Some(n) = start.classes {
        let output = loss_output(g, output).map_err(|e| fail(format!("--classes: {}", sentence(&e, e.hint()))))?;
        let done = classes::replace_classifier(g, output, n as i64, start.reinit.unwrap_or(0))
            .map_err(|e| fail(format!("--classes: {e}")))?;
        notices.push(format!(
            "`{}` is a fresh linear map of {} features to {n} classes (before: {}); the rest is compared with the source with this map in its place",
            done.node, done.features, done.before
        ));
        fresh.tensors = done.fresh;
    }
    if let Some(seed) = start.reinit {
        // Parameters that an exporter merged because they were equal no longer are.
        separate::separate_parameters(g);
        let ties = if start.untied { Vec::new() } else { tie::find_ties(g) };
        let kept = reinit::reinitialize(g, seed);
        ties.iter().for_each(|t| tie::begin(g, t));
        let but = match kept.as_slice() {
            [] => String::new(),
            some => format!(", but {} scales whose start belongs to the model ({}, …)", some.len(), some[0]),
        };
        notices.push(format!("every trained weight starts afresh from seed {seed}{but}; the rewrite is compared with the source under the same weights"));
    }
    fresh.write(g);
    Ok(true)
}

/// The notice for training without the batch normalisation that the network was built with.
fn lost_normalisation(g: &Graph, from_scratch: bool) -> Option<String> {
    let what = match reinit::normalisation(g) {
        Normalisation::Whole => return None,
        Normalisation::Gone => "the network has convolutions but no normalisation: if it had batch normalisation, that was folded into the convolutions when it was exported".to_string(),
        Normalisation::Partly(bare, all) => format!(
            "{bare} of {all} convolutions have a bias and an activation right after them, although the network has batch normalisation elsewhere: that of these was folded into them when it was exported"
        ),
    };
    let (but, otherwise) = match from_scratch {
        true => ("training from scratch will suffer", ""),
        false => ("it trains less well without", "; otherwise give it more steps, or a rate by --lr auto"),
    };
    Some(format!(
        "{what}, and {but}; export in training mode (torch.onnx: training=TrainingMode.PRESERVE, do_constant_folding=False){otherwise}"
    ))
}

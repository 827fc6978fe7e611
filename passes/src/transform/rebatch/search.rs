//! The search over the choices that reshapes leave open, and over what has to be moved.

use super::edit::Edit;
use super::{Analysis, RebatchError};
use crate::ir::{Kind, NodeId};

/// How often a choice may be taken back before nodes are asked for more effort.
const MOST_RETRIES: usize = 2000;

/// How often a choice may be taken back once some nodes make more effort.
const FEW_RETRIES: usize = 100;

/// Why a walk failed.
struct Failure {
    /// The first refusal.
    first: RebatchError,
    /// The furthest node that refused; `None`: the outputs.
    furthest: Option<NodeId>,
}

/// Walks the nodes until none refuses: first with other choices where there are some, then with more effort at the node that no
/// choice helped, at last with integers as they were in the source. Returns the changes in the graph's order.
pub(super) fn search(a: &mut Analysis) -> Result<Vec<(NodeId, Edit)>, RebatchError> {
    let order = a.g.topological_order();
    let mut first = None;
    let mut retries = MOST_RETRIES;
    while let Err(failure) = walk(a, &order, retries) {
        let why = first.get_or_insert(failure.first).clone();
        retries = FEW_RETRIES;
        let more = failure.furthest.and_then(|n| Some((n, a.efforts.get(&n).copied().unwrap_or_default().more()?)));
        match more {
            Some((node, effort)) => drop(a.efforts.insert(node, effort)),
            None if !a.as_was => {
                a.as_was = true;
                a.efforts.clear();
                retries = MOST_RETRIES;
            }
            None => return Err(why),
        }
    }
    Ok(order.iter().flat_map(|n| a.edits.remove(n).unwrap_or_default().into_iter().map(|e| (*n, e))).collect())
}

fn walk(a: &mut Analysis, order: &[NodeId], most_retries: usize) -> Result<(), Box<Failure>> {
    // Choices made so far: position in the order, answer taken, number of answers.
    let mut choices: Vec<(usize, usize, usize)> = Vec::new();
    let mut failed: Option<(RebatchError, usize)> = None;
    // Once an input is taken not to carry samples, other nodes refuse.
    let mut by_inputs = false;
    let (mut at, mut answer, mut retries) = (0, 0, 0);
    a.edits.clear();
    loop {
        let step = match order.get(at) {
            Some(node) => a.step(*node, answer),
            None => match a.check_outputs() {
                Ok(()) => return Ok(()),
                Err(why) => Err(why),
            },
        };
        let why = match step {
            Ok(answers) => {
                if answers > 1 {
                    choices.push((at, answer, answers));
                }
                (at, answer) = (at + 1, 0);
                continue;
            }
            Err(why) => why,
        };
        let (first, mut furthest) = failed.take().unwrap_or((why, at));
        if !by_inputs {
            furthest = at.max(furthest);
        }
        retries += 1;
        while choices.pop_if(|(_, taken, answers)| *taken + 1 >= *answers).is_some() {}
        let Some((place, taken, _)) = choices.pop().filter(|_| retries <= most_retries) else {
            return Err(Box::new(Failure { first, furthest: order.get(furthest).copied() }));
        };
        failed = Some((first, furthest));
        by_inputs |= matches!(a.g.node(order[place]).kind, Kind::Input(_));
        (at, answer) = (place, taken + 1);
    }
}

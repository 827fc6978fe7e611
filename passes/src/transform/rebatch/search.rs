//! The search over the choices that reshapes leave open, and over what has to be moved.

use super::edit::Edit;
use super::{Analysis, Refusal};
use crate::ir::{Kind, NodeId};
use std::collections::HashMap;

/// Times that a choice may be taken back before nodes are asked to do more.
const MOST_RETRIES: usize = 2000;

/// The same once some nodes do.
const FEW_RETRIES: usize = 100;

/// Why a walk failed.
struct Failure {
    /// What was refused first.
    first: Refusal,
    /// The furthest node that refused; `None`: the end.
    furthest: Option<NodeId>,
}

/// Walks the nodes until all are content: with other choices where there are some, then with more effort at the node that no
/// choice contents, at last with integers as they were in the source. Returns the changes in the graph's order.
pub(super) fn search(a: &mut Analysis) -> Result<Vec<(NodeId, Edit)>, Refusal> {
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

fn walk(a: &mut Analysis, order: &[NodeId], most_retries: usize) -> Result<(), Failure> {
    // Choices made so far: position in the order, answer taken, number of answers.
    let mut choices: Vec<(usize, usize, usize)> = Vec::new();
    let mut failed: Option<(Refusal, usize)> = None;
    // Once an input is taken not to carry samples, other nodes refuse.
    let mut by_inputs = false;
    let (mut at, mut answer, mut retries) = (0, 0, 0);
    let end = order.len();
    a.edits = HashMap::new();
    loop {
        let step = if at < end { a.step(order[at], answer) } else { a.check_outputs().map(|()| 1) };
        match step {
            Ok(_) if at == end => return Ok(()),
            Ok(answers) => {
                if answers > 1 {
                    choices.push((at, answer, answers));
                }
                (at, answer) = (at + 1, 0);
            }
            Err(why) => {
                let (_, furthest) = failed.get_or_insert((why, at));
                if !by_inputs {
                    *furthest = at.max(*furthest);
                }
                retries += 1;
                let next = loop {
                    match choices.pop() {
                        Some((p, taken, answers)) if taken + 1 < answers => break Some((p, taken + 1)),
                        Some(_) => {}
                        None => break None,
                    }
                };
                let Some((p, other)) = next.filter(|_| retries <= most_retries) else { break };
                by_inputs |= matches!(a.g.node(order[p]).kind, Kind::Input(_));
                (at, answer) = (p, other);
            }
        }
    }
    let (first, furthest) = failed.unwrap_or_default();
    Err(Failure { first, furthest: order.get(furthest).copied() })
}

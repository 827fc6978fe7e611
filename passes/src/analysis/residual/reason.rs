//! Why an add is no join, in words.

use super::Why;
use super::flow::Flow;
use super::join::Refusal;
use crate::ir::{NodeId, ValueId};
use crate::ops::Class;

/// A sentence that names the add's operands.
pub(super) fn reason(f: &Flow, add: NodeId, why: Option<Refusal>) -> String {
    let name = |v: ValueId| format!("`{}`", f.g.name(v));
    let operand = |i: usize| f.g.operand(add, i).map_or_else(|| format!("operand {i}"), name);
    let site = |n: NodeId| f.g.site(n).to_string();
    // The state, and the skip where it is another value.
    let from = |state: ValueId, skip: usize| match f.g.operand(add, skip) {
        Some(v) if v != state => format!("{} (skip: {})", name(state), name(v)),
        _ => name(state),
    };
    let Some(why) = why else { return "it was not examined".into() };
    match why {
        Refusal::ConstantOperand(i) => {
            format!(
                "{} is a constant (a bias, an embedding of positions, a mask or an epsilon), not a state or a branch",
                operand(i)
            )
        }
        Refusal::Broadcast(i) => {
            let sum = f.g.result(add, 0);
            format!(
                "{} is {}, the sum is {}: an operand is broadcast, so it is neither the state nor a branch",
                operand(i),
                f.g.operand(add, i).map(|v| f.g.value(v).ty.to_string()).unwrap_or_default(),
                f.g.value(sum).ty
            )
        }
        Refusal::Branch(i, why) => match why {
            Why::Independent => {
                if let Some((a, b, origin)) = common_origin(f, add) {
                    return format!(
                        "{} and {} are both computed from {} without a convolution, product, attention or pooling: a rotary embedding, an activation or a normalisation written out",
                        name(a),
                        name(b),
                        name(origin)
                    );
                }
                let all: Vec<String> = f.g.operands(add).iter().flatten().map(|v| name(*v)).collect();
                format!(
                    "none of {} is a state, or a linear projection of one, that another is computed from: a sum of two branches",
                    all.join(", ")
                )
            }
            Why::NoMixing(state) => format!(
                "the other operand is computed from {} without a convolution, product, attention or pooling, so there is no residual branch",
                from(state, i)
            ),
            Why::Constant(state) => {
                format!("{} is a constant that is added to data, such as a bias, not a state", name(state))
            }
            Why::Gated(state, by) => format!(
                "the skip {} is multiplied by a function of {} at {}, so the state does not pass unchanged",
                operand(i),
                name(state),
                site(by)
            ),
            Why::Term(state, join) => format!(
                "{} is {} times a factor for each channel, inside the residual branch that ends at {}: a term of that branch, not a path around a block",
                operand(i),
                name(state),
                site(join)
            ),
            Why::Leaks(state, stray) => format!(
                "the other operand is computed from {}, but what is between them is also used past this add, by way of {}: a mask, shared bias or fusion of features rather than a skip around a branch",
                from(state, i),
                site(stray)
            ),
            Why::Crosses(state, join) => format!(
                "it is inside the residual branch that ends at {}, while {} comes from outside of that branch: conditioning, a mask or a shared bias",
                site(join),
                from(state, i)
            ),
            Why::Parallel(state) => format!(
                "both operands are computed from {}, and {} is no simpler than the other: a sum of parallel branches",
                name(state),
                operand(i)
            ),
            Why::Fusion(state) => format!(
                "{} would be a projection of {} around whole residual blocks: a fusion of features, not one block's skip",
                operand(i),
                name(state)
            ),
        },
    }
}

/// The nearest value from which two operands are computed without mixing operators.
fn common_origin(f: &Flow, add: NodeId) -> Option<(ValueId, ValueId, ValueId)> {
    let [Some(a), Some(b), ..] = f.g.operands(add) else { return None };
    let (from_a, from_b) = (unmixed(f, *a), unmixed(f, *b));
    let shared = from_a.into_iter().filter(|v| from_b.contains(v)).max_by_key(|v| f.place_of(v.node))?;
    Some((*a, *b, shared))
}

/// Values that a value is computed from without mixing operators, as far as one looks.
fn unmixed(f: &Flow, v: ValueId) -> Vec<ValueId> {
    let mut found = vec![v];
    let mut next = 0;
    while next < found.len() && found.len() < 32 {
        let n = found[next].node;
        next += 1;
        if matches!(f.class_of(n), Class::Mixing(_)) {
            continue;
        }
        for (_, r) in &f.reads[n.index()] {
            if f.is_live(*r) && !found.contains(r) {
                found.push(*r);
            }
        }
    }
    found
}

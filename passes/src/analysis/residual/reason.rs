//! Why an add is no join, in words.

use super::Why;
use super::flow::Flow;
use super::join::Refusal;
use crate::ir::{NodeId, ValueId};

/// A sentence that names the add's operands.
pub(super) fn reason(f: &Flow, add: NodeId, why: Option<Refusal>) -> String {
    let name = |v: ValueId| format!("`{}`", f.g.name(v));
    let operand = |i: usize| f.g.operand(add, i).map_or_else(|| format!("operand {i}"), name);
    let site = |n: NodeId| f.g.site(n).to_string();
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
                let all: Vec<String> = f.g.operands(add).iter().flatten().map(|v| name(*v)).collect();
                format!(
                    "none of {} is a state, or a linear projection of one, that another is computed from: a sum of two branches",
                    all.join(", ")
                )
            }
            Why::NoMixing(state) => format!(
                "the other operand is computed from {} (skip: {}) without a convolution, product, attention or pooling, so there is no residual branch",
                name(state),
                operand(i)
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
            Why::Leaks(state, stray) => format!(
                "the other operand is computed from {} (skip: {}), but what is between them is also used past this add, by way of {}: a mask, shared bias or fusion of features rather than a skip around a branch",
                name(state),
                operand(i),
                site(stray)
            ),
            Why::Crosses(state, join) => format!(
                "it is inside the residual branch that ends at {}, while {} (skip: {}) comes from outside of that branch: conditioning, a mask or a shared bias",
                site(join),
                name(state),
                operand(i)
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

//! Why an add is no join, in words.

use super::Why;
use super::flow::Flow;
use super::join::Refusal;
use crate::ir::{NodeId, ValueId};
use crate::ops::Class;

/// A sentence that names the add's operands.
pub(super) fn reason(f: &Flow, add: NodeId, why: Refusal) -> String {
    let name = |v: ValueId| format!("`{}`", f.g.name(v));
    let operand = |i: usize| f.g.operand(add, i).map_or_else(|| format!("operand {i}"), name);
    let site = |n: NodeId| f.g.site(n).to_string();
    let (i, why) = match why {
        Refusal::ConstantOperand(i) => {
            let what = "a bias, an embedding of positions, a mask or an epsilon";
            return format!("{} is a constant ({what}), not a state or a branch", operand(i));
        }
        Refusal::Broadcast(i) => {
            let sum = &f.g.value(f.g.result(add, 0)).ty;
            let ty = f.g.operand(add, i).map(|v| f.g.value(v).ty.to_string()).unwrap_or_default();
            let what = "an operand is broadcast, so it is neither the state nor a branch";
            return format!("{} is {ty}, the sum is {sum}: {what}", operand(i));
        }
        Refusal::Branch(i, why) => (i, why),
    };
    let skip = operand(i);
    // The state, and the skip where it is another value.
    let from = |state: ValueId| match f.g.operand(add, i) {
        Some(v) if v != state => format!("{} (skip: {})", name(state), name(v)),
        _ => name(state),
    };
    match why {
        Why::Independent => {
            if let Some((a, b, origin)) = common_origin(f, add) {
                let (both, origin) = (format!("{} and {}", name(a), name(b)), name(origin));
                let how = "without a convolution, product, attention or pooling";
                let what = "a rotary embedding, an activation or a normalisation written out";
                return format!("{both} are both computed from {origin} {how}: {what}");
            }
            let all: Vec<String> = f.g.operands(add).iter().flatten().map(|v| name(*v)).collect();
            let what = "is a state, or a linear projection of one, that another is computed from: a sum of two branches";
            format!("none of {} {what}", all.join(", "))
        }
        Why::NoMixing(state) => {
            let how = "without a convolution, product, attention or pooling, so there is no residual branch";
            format!("the other operand is computed from {} {how}", from(state))
        }
        Why::Constant(state) => {
            format!("{} is a constant that is added to data, such as a bias, not a state", name(state))
        }
        Why::Gated(state, by) => {
            let (state, by) = (name(state), site(by));
            format!("the skip {skip} is multiplied by a function of {state} at {by}, so the state does not pass unchanged")
        }
        Why::Term(state, join) => {
            let (state, join) = (name(state), site(join));
            let what =
                format!("inside the residual branch that ends at {join}: a term of that branch, not a path around a block");
            format!("{skip} is {state} times a factor for each channel, {what}")
        }
        Why::Leaks(state, stray) => {
            let how = format!("what is between them is also used past this add, by way of {}", site(stray));
            let what = "a mask, shared bias or fusion of features rather than a skip around a branch";
            format!("the other operand is computed from {}, but {how}: {what}", from(state))
        }
        Why::Crosses(state, join) => {
            let how = format!("{} comes from outside of that branch: conditioning, a mask or a shared bias", from(state));
            format!("it is inside the residual branch that ends at {}, while {how}", site(join))
        }
        Why::Parallel(state) => {
            let how = format!("{skip} is no simpler than the other: a sum of parallel branches");
            format!("both operands are computed from {}, and {how}", name(state))
        }
        Why::Fusion(state) => {
            let what = "around whole residual blocks: a fusion of features, not one block's skip";
            format!("{skip} would be a projection of {} {what}", name(state))
        }
    }
}

/// The nearest value from which two operands are computed without mixing operators.
fn common_origin(f: &Flow, add: NodeId) -> Option<(ValueId, ValueId, ValueId)> {
    let [Some(a), Some(b), ..] = f.g.operands(add) else { return None };
    let (from_a, from_b) = (unmixed(f, *a), unmixed(f, *b));
    let shared = from_a.into_iter().filter(|v| from_b.contains(v)).max_by_key(|v| f.place_of(v.node))?;
    Some((*a, *b, shared))
}

/// Values that a value is computed from without mixing operators; the search stops at 32.
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

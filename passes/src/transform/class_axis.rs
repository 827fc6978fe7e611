//! Which axis of an output holds the classes.
//!
//! | evidence, in this order | axis |
//! |---|---|
//! | the caller's choice | that one |
//! | next-token: logits [N, T, V] | the last |
//! | [N, C] | 1 |
//! | a trailing softmax | the one that it normalises |
//! | the weight of the last linear maps | the one that comes from the weight: output features of a `MatMul`, channels of a `Conv` |
//! | integer ids in, rank 3 out | the last |
//!
//! Where none of it tells, the output can be read in two ways ([N, C, d1, …] and [N, d1, …, C]), and that is an error.

use super::loss::{LossError, LossKind, Squash, squashed};
use crate::ir::{DType, Graph, NodeId, ValueId};
use crate::ops::{Class, Mixing, axes_of};
use std::collections::HashSet;

/// The axis of the classes in an output whose loss takes labels.
///
/// # Errors
/// When there are two readings; the message lists them. When the axis that was asked for cannot be.
pub(super) fn class_axis(g: &Graph, output: ValueId, kind: LossKind, asked: Option<i64>) -> Result<usize, LossError> {
    let name = g.name(output);
    let ty = g.tensor_type(output).filter(|t| t.rank() >= 2).ok_or_else(|| {
        let needs = format!("{} needs logits of rank 2 or more, it has type {}", kind.name(), g.value(output).ty);
        LossError::Unfit(format!("output `{name}`: {needs}"))
    })?;
    let last = ty.rank() - 1;
    if let Some(asked) = asked {
        let fits = |axis: &usize| *axis > 0 && (kind != LossKind::NextToken || *axis == last);
        return ty.axis(asked).filter(fits).ok_or_else(|| {
            let which =
                if kind == LossKind::NextToken || last == 1 { format!("{last} is") } else { format!("1 to {last} are") };
            LossError::Unfit(format!("output `{name}` {ty} has no axis {asked} of classes; {which} possible"))
        });
    }
    if kind == LossKind::NextToken || last == 1 {
        return Ok(last);
    }
    let squashed = squashed(g, output);
    if let Some(Squash::Softmax(axis)) = squashed.as_ref().map(|s| s.squash)
        && axis > 0
    {
        return Ok(axis);
    }
    let fed = g.fed();
    let mut readings: Vec<usize> = (1..=last).filter(|axis| comes_from_weight(g, output, *axis, &fed)).collect();
    if readings.is_empty() {
        readings = vec![1, last];
    }
    let ids = g.required_inputs().any(|v| matches!(g.value(v).ty.dtype, Some(DType::I64 | DType::I32)));
    match readings[..] {
        [one] => Ok(one),
        _ if last == 2 && ids => Ok(last),
        _ => {
            let each = readings.iter().map(|a| format!("axis {a} ({} classes)", ty.shape[*a]));
            let each = each.collect::<Vec<_>>().join(" or ");
            Err(LossError::WhichAxis(format!("output `{name}` {ty} can hold its classes on {each}")))
        }
    }
}

/// Does an axis of a value come from the weight of the linear maps that are met first on the way back to the inputs?
fn comes_from_weight(g: &Graph, v: ValueId, axis: usize, fed: &HashSet<NodeId>) -> bool {
    let mut open = vec![(v, axis)];
    let mut seen = HashSet::new();
    while let Some((v, axis)) = open.pop() {
        if !seen.insert((v, axis)) {
            continue;
        }
        let (Some(op), Some(axes)) = (g.op(v.node), axes_of(g, v.node)) else { continue };
        let Some(label) = axes.result(v.slot as usize).get(axis).copied() else { continue };
        let operands = || g.operands(v.node).iter().enumerate().filter_map(|(i, o)| Some((i, (*o)?)));
        let is_weight = |o: ValueId| !fed.contains(&o.node) && g.tensor_type(o).is_some_and(|t| t.rank() >= 2);
        if matches!(Class::of(op), Class::Mixing(Mixing::MatMul | Mixing::Conv)) && operands().any(|(_, o)| is_weight(o)) {
            if operands().any(|(i, o)| is_weight(o) && axes.in_operand(i, label).is_some()) {
                return true;
            }
            continue;
        }
        open.extend(
            operands().filter(|(_, o)| fed.contains(&o.node)).filter_map(|(i, o)| Some((o, axes.in_operand(i, label)?))),
        );
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    fn of(text: &str, asked: Option<i64>) -> Result<usize, String> {
        let g = parse(text).unwrap();
        class_axis(&g, g.outputs()[0].value, LossKind::CrossEntropy, asked).map_err(|e| e.to_string())
    }

    #[test]
    fn the_weight_of_the_head_tells_the_axis() {
        // Frames of float features; the same with the classes brought forward; a segmentation; the same with channels last.
        let frames = "net (float[n, 6, 4] x) => (y) <float[4, 5] w = {…}, float[5] b = {…}> { h = MatMul (x, w) ";
        assert_eq!(of(&format!("{frames} y = Add (h, b) }}"), None), Ok(2));
        assert_eq!(of(&format!("{frames} a = Add (h, b) y = Transpose <perm = [0, 2, 1]> (a) }}"), None), Ok(1));
        let image = "net (float[n, 3, 8, 8] x) => (y) <float[5, 3, 1, 1] w = {…}> { h = Conv (x, w) ";
        assert_eq!(of(&format!("{image} y = Relu (h) }}"), None), Ok(1));
        assert_eq!(of(&format!("{image} y = Transpose <perm = [0, 2, 3, 1]> (h) }}"), None), Ok(3));
    }

    #[test]
    fn two_readings_are_an_error_that_the_caller_decides() {
        let plain = "net (float[n, 6, 4] x) => (y) { y = Relu (x) }";
        let e = of(plain, None).unwrap_err();
        assert_eq!(e, "output `y` f32[n,6,4] can hold its classes on axis 1 (6 classes) or axis 2 (4 classes)");
        assert_eq!((of(plain, Some(1)), of(plain, Some(-1))), (Ok(1), Ok(2)));
        assert!(of(plain, Some(0)).unwrap_err().contains("no axis 0 of classes; 1 to 2 are possible"));
        // Both axes are mixed by weights, and added.
        let mixer = "net (float[n, 6, 6] x) => (y) <float[6, 6] w = {…}> {
            a = MatMul (x, w) b = MatMul (w, x) y = Add (a, b) }";
        assert!(of(mixer, None).is_err());
        let softmax = "net (float[n, 6, 4] x) => (y) { y = Softmax <axis = 1> (x) }";
        assert_eq!(of(softmax, None), Ok(1));
        let ids = "net (int64[n, 6] ids) => (y) <float[9, 4] e = {…}> { h = Gather (e, ids) y = Relu (h) }";
        assert_eq!(of(ids, None), Ok(2));
    }
}

//! `Scan`: a loop over the first axis of its operands. Its body is built as any graph is, by a function.

use super::*;
use crate::onnx;
use build::BuildError;

/// What a loop reads.
pub(super) struct Loop<'a> {
    /// What the first step finds of the values that one step hands to the next.
    pub(super) carried: &'a [ValueId],
    /// What each step reads its part of, along axis 0.
    pub(super) parts: &'a [ValueId],
    /// What every step reads as it is. All are different.
    pub(super) whole: &'a [ValueId],
    /// Does it run from the last part to the first? Stacked results stand in the order of the parts all the same.
    pub(super) backward: bool,
}

/// What a step hands on, and its part of each stacked result.
pub(super) type Step = Result<(Vec<ValueId>, Vec<ValueId>), BuildError>;

/// Adds a loop; its results are what the last step hands on, then the stacked ones. The step is built from what is carried, parts and
/// what is read whole, in that order.
///
/// # Errors
/// When a type is not known or the step cannot be built.
pub(super) fn scan(
    b: &mut Builder,
    l: &Loop,
    step: impl FnOnce(&mut Builder, &[ValueId]) -> Step,
) -> Result<Vec<ValueId>, BuildError> {
    let mut graph = Graph::default();
    graph.opsets.clone_from(&b.graph.opsets);
    let mut read = Vec::new();
    for v in l.whole {
        read.push(graph.add_input(b.graph.name(*v), b.ty(*v)?.into(), None));
    }
    for v in l.carried {
        read.push(graph.add_input(&format!("{}/step/carried", b.prefix), b.ty(*v)?.into(), None));
    }
    let mut steps = Dim::from(0);
    for v in l.parts {
        let mut ty = b.ty(*v)?;
        steps = ty.shape.remove(0);
        read.push(graph.add_input(&format!("{}/step/part", b.prefix), ty.into(), None));
    }
    read.rotate_left(l.whole.len());
    let mut inner = Builder::on(&mut graph, &format!("{}/step", b.prefix), b.target);
    let (next, stacked) = step(&mut inner, &read)?;
    let mut types: Vec<TensorType> = l.carried.iter().map(|v| b.ty(*v)).collect::<Result<_, _>>()?;
    for (i, v) in next.into_iter().chain(stacked.iter().copied()).enumerate() {
        // An output is a result of its own.
        let taken = inner.graph.op(v.node).is_none() || inner.graph.is_output(v);
        let v = if taken { inner.op("Identity", &[v])? } else { v };
        inner.graph.add_output(v, None);
        if i >= l.carried.len() {
            let ty = inner.ty(v)?;
            types.push(TensorType::new(ty.dtype, [&[steps.clone()], ty.shape.as_slice()].concat()));
        }
    }
    name_apart(b.graph, &mut graph, &read[..l.carried.len() + l.parts.len()]);
    let body = onnx::body(&graph, l.whole.len()).map_err(|e| b.error("Scan", TypeError(e.to_string())))?;
    let mut attrs = Attrs::new().with("body", body).with("num_scan_inputs", l.parts.len() as i64);
    if l.backward {
        attrs = attrs.with("scan_input_directions", vec![1; l.parts.len()]);
        attrs = attrs.with("scan_output_directions", vec![1; stacked.len()]);
    }
    let operands: Vec<_> = l.carried.iter().chain(l.parts).map(|v| Some(*v)).collect();
    let results = b.node_of(Op::new("Scan", attrs), &operands, types);
    l.whole.iter().for_each(|v| b.graph.add_capture(results[0].node, *v));
    Ok(results)
}

/// Gives the values of a body (`own` of its inputs, and all that it computes) names that the graph around it does not have, and keeps
/// those free there.
fn name_apart(outer: &mut Graph, body: &mut Graph, own: &[ValueId]) {
    let computed = body.nodes().filter(|n| !body.inputs().contains(n)).flat_map(|n| body.results(n));
    for v in own.iter().copied().chain(computed).collect::<Vec<_>>() {
        let mut name = body.name(v).to_string();
        while !outer.is_free(&name) {
            let free = outer.fresh_name(&name);
            name = body.rename(v, &free);
        }
        outer.reserve(&name);
    }
}

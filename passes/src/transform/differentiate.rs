//! Reverse-mode differentiation: appends to a graph the nodes that compute the loss's gradient.
//!
//! Walks the nodes backwards in topological order. A node's pullback turns its results' cotangents into terms of its
//! operands' cotangents; a value's terms are summed once, when its producer is reached. Only values that lie between a
//! trainable tensor and the loss carry cotangents.

use crate::ir::{Graph, Kind, NodeId, NodeSite, Tensor, ValueId};
use crate::ops::build::Builder;
use crate::ops::{self, Contribution, Cotangent, Cotangents, Deferred, Derivative, GradError, OpRule, Pullback};
use crate::refusal::{Hint, Why};
use crate::target::Target;
use crate::transform::{control_flow, legalize};
use indexmap::IndexMap;
use std::collections::{HashSet, VecDeque};

/// Gradients by trainable value. A value the loss does not depend on is absent.
pub type Gradients = IndexMap<ValueId, ValueId>;

/// Appends the gradient of a scalar `loss` with respect to `wrt`, as it is best computed on a target.
///
/// # Errors
/// When an operator on a differentiable path has no pullback (the error names the path), or a pullback fails.
pub fn differentiate(
    g: &mut Graph,
    target: &'static Target,
    loss: ValueId,
    wrt: &[ValueId],
) -> Result<Gradients, GradError> {
    let all = differentiate_past(g, target, loss, wrt, &[])?;
    Ok(wrt.iter().filter_map(|v| Some((*v, *all.get(v)?))).collect())
}

/// As [`differentiate`], with values that count as constants: no gradient goes through the nodes that give them. Gives the cotangents
/// of the values between as well.
///
/// # Errors
/// As there.
pub fn differentiate_past(
    g: &mut Graph,
    target: &'static Target,
    loss: ValueId,
    wrt: &[ValueId],
    constant: &[ValueId],
) -> Result<Gradients, GradError> {
    let mut all = Gradients::new();
    let order = g.topological_order();
    let active = reached_from(g, &order, wrt, constant);
    let dtype = g.value(loss).ty.dtype.unwrap_or(crate::ir::DType::F32);
    let mut b = Builder::on(g, "grad", target);
    let seed = b.constant("const/loss_ct", Tensor::floats(dtype, &[], &[1.0]));
    let mut cts: Cotangents = IndexMap::from([(loss, vec![Contribution::Value(Cotangent::of(seed))])]);
    for id in order.into_iter().rev() {
        let Kind::Op(op) = &b.graph.node(id).kind else { continue };
        let op = op.clone();
        let results: Vec<ValueId> = b.graph.results(id).collect();
        if !results.iter().any(|v| cts.contains_key(v)) || !results.iter().any(|v| active[v.node.index()]) {
            continue;
        }
        let site = b.graph.site(id);
        let rule = ops::rule(&op);
        match rule.map(|r| r.derivative()) {
            Some(Derivative::Zero) => continue,
            Some(Derivative::Pullback) => {}
            Some(Derivative::Decompose(form)) => {
                let why = legalize::refusal(b.graph, id);
                let why = why.unwrap_or_else(|| Why::Form(format!("is written as other operators first ({form})")));
                return Err(no_pullback(b.graph, id, wrt, loss, &why.to_string(), why.hint()));
            }
            Some(Derivative::None(reason)) => return Err(no_pullback(b.graph, id, wrt, loss, reason, None)),
            None => {
                let (why, other) = (control_flow::refusal(b.graph, id), ops::why_no_rule(&op));
                let reason = why.as_ref().map_or_else(|| other.to_string(), Why::to_string);
                return Err(no_pullback(b.graph, id, wrt, loss, &reason, why.and_then(|why| why.hint())));
            }
        }
        let Some(rule) = rule else { continue };
        b.prefix = format!("grad/{}", site.name);
        let result_cts =
            results.iter().map(|v| finish(&mut b, &mut cts, *v)).collect::<Result<Vec<_>, _>>().map_err(at(&site))?;
        all.extend(results.iter().zip(&result_cts).filter_map(|(v, ct)| Some((*v, ct.as_ref()?.value))));
        b.steep = result_cts.iter().flatten().any(|ct| ct.steep);
        let wanted = |v: ValueId| active[v.node.index()];
        let mut p = Pullback { b: &mut b, node: id, rule, result_cts, wanted: &|v| wanted(v), cotangents: &mut cts };
        let built = match ops::unready(p.graph(), id) {
            Some(e) => {
                // The node that lost a type is to be named.
                let lost = p.graph().reads(id).find(|v| p.graph().tensor_type(*v).is_none());
                let lost = lost.map(|v| format!("; {}", p.graph().untyped(v))).unwrap_or_default();
                Err(p.unsupported(&format!("its rule cannot be applied: {e}{lost}")))
            }
            None => rule.pullback(&mut p),
        };
        built.map_err(|e| {
            let untyped = b.graph.reads(id).any(|v| b.graph.tensor_type(v).is_none());
            match (control_flow::before(b.graph, id), e) {
                (None, GradError::NoPullback { reason, hint, .. }) => no_pullback(b.graph, id, wrt, loss, &reason, hint),
                (Some(_), GradError::NoPullback { reason, hint, .. }) if !untyped => {
                    no_pullback(b.graph, id, wrt, loss, &reason, hint)
                }
                // Behind it types are unknown.
                (Some((node, why)), _) => no_pullback(b.graph, node, wrt, loss, &why.to_string(), why.hint()),
                (None, other) => at(&site)(other),
            }
        })?;
    }
    for v in wrt {
        if let Some(ct) = finish(&mut b, &mut cts, *v)? {
            all.insert(*v, ct.value);
        }
    }
    Ok(all)
}

fn at(site: &NodeSite) -> impl Fn(GradError) -> GradError + '_ {
    |e| match e {
        GradError::Build { error, .. } => GradError::Build { site: site.clone(), error },
        other => other,
    }
}

/// Which nodes have a float value that depends on `wrt` through differentiable operators.
fn reached_from(g: &Graph, order: &[NodeId], wrt: &[ValueId], constant: &[ValueId]) -> Vec<bool> {
    let constant: HashSet<NodeId> = constant.iter().map(|v| v.node).collect();
    let mut active = vec![false; g.node_bound()];
    for v in wrt {
        active[v.node.index()] = true;
    }
    for id in order {
        let Kind::Op(op) = &g.node(*id).kind else { continue };
        let stops = ops::rule(op).is_some_and(|r| r.derivative() == Derivative::Zero) || constant.contains(id);
        let carries = g.results(*id).any(|v| g.value(v).ty.dtype.is_none_or(|t| t.is_float()));
        if !stops && carries && g.reads(*id).any(|v| active[v.node.index()]) {
            active[id.index()] = true;
        }
    }
    active
}

/// Sums a value's terms into its cotangent. Terms that a rule has deferred are built now.
fn finish(b: &mut Builder, cts: &mut Cotangents, v: ValueId) -> Result<Option<Cotangent>, GradError> {
    let Some(terms) = cts.swap_remove(&v) else { return Ok(None) };
    // The sum is zero where its only term is, and infinite where any is.
    let guard = match terms[..] {
        [Contribution::Value(ct)] => ct.guard,
        _ => None,
    };
    let steep = terms.iter().any(|t| matches!(t, Contribution::Value(ct) if ct.steep));
    let mut values = Vec::new();
    let mut deferred: IndexMap<&str, (&dyn OpRule, Vec<Deferred>)> = IndexMap::new();
    for t in terms {
        match t {
            Contribution::Value(ct) => values.push(ct.value),
            Contribution::Deferred(rule, term) => deferred.entry(rule.name()).or_insert((rule, Vec::new())).1.push(term),
        }
    }
    // Deferred terms may change the prefix of names.
    let prefix = b.prefix.clone();
    for (rule, terms) in deferred.into_values() {
        values.extend(rule.gather(b, cts, v, &terms)?);
    }
    b.prefix = prefix;
    let ct = ops::sum_terms(b, &values)?;
    // A readable name, unless the cotangent is another value's too (an Add hands its own on to both operands).
    let name = b.graph.name(ct).to_string();
    if name.starts_with("grad/") && !name.ends_with(".ct") {
        let stem = format!("{}.ct", b.graph.name(v));
        b.graph.rename(ct, &stem);
    }
    Ok(Some(Cotangent { value: ct, guard, steep }))
}

/// The error for a node without a derivative, with the path from a trainable tensor through it to the loss.
fn no_pullback(g: &Graph, id: NodeId, wrt: &[ValueId], loss: ValueId, reason: &str, hint: Option<Hint>) -> GradError {
    let up = shortest(g, wrt.iter().map(|v| v.node).collect(), id);
    let down = shortest(g, VecDeque::from([id]), loss.node);
    let mut names: Vec<String> = up.iter().chain(down.iter().skip(1)).map(|n| g.site(*n).name).collect();
    if names.len() > 9 {
        let at = up.len().saturating_sub(1).clamp(4, names.len() - 5);
        let kept = [&names[..2], &["…".to_string()], &names[at - 1..=at + 1], &["…".to_string()], &names[names.len() - 2..]];
        names = kept.concat();
    }
    let mut reason = reason.to_string();
    let hint = hint.or_else(|| {
        let (of_loss, of_node) = (g.ancestors([loss.node]), g.ancestors([id]));
        let is_left = wrt.iter().any(|v| of_loss.contains(&v.node) && !of_node.contains(&v.node));
        if !is_left {
            reason += "; all that trains lies before it";
        }
        is_left.then_some(Hint::FreezeBefore)
    });
    GradError::NoPullback { site: g.site(id), reason, path: names.join(" → "), hint }
}

/// The last node before `loss` that is computed from some of `wrt` and hands no derivative on, where none comes through to the loss.
pub fn barrier(g: &Graph, wrt: &[ValueId], loss: ValueId) -> Option<NodeSite> {
    let depends = g.descendants(wrt.iter().map(|v| v.node));
    let active = reached_from(g, &g.topological_order(), wrt, &[]);
    let (mut queue, mut seen) = (VecDeque::from([loss.node]), HashSet::from([loss.node]));
    while let Some(id) = queue.pop_front() {
        if depends.contains(&id) && g.reads(id).any(|v| active[v.node.index()]) {
            return Some(g.site(id));
        }
        queue.extend(g.reads(id).map(|v| v.node).filter(|n| depends.contains(n) && seen.insert(*n)));
    }
    None
}

/// A shortest path along uses from one of `from` to `to`.
fn shortest(g: &Graph, from: VecDeque<NodeId>, to: NodeId) -> Vec<NodeId> {
    let mut before: IndexMap<NodeId, Option<NodeId>> = from.iter().map(|n| (*n, None)).collect();
    let mut queue = from;
    while let Some(n) = queue.pop_front() {
        if n == to {
            let mut path = vec![n];
            while let Some(Some(p)) = path.last().and_then(|l| before.get(l)) {
                path.push(*p);
            }
            path.reverse();
            return path;
        }
        for v in g.results(n) {
            for (consumer, _) in g.uses_in_order(v) {
                if !before.contains_key(&consumer) {
                    before.insert(consumer, Some(n));
                    queue.push_back(consumer);
                }
            }
        }
    }
    vec![to]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    /// As keras2onnx writes them: padding that follows from an extent which only the run tells.
    fn same(op: &str) -> (Graph, Result<Gradients, GradError>) {
        let attrs = "kernel_shape = [2, 2], strides = [2, 2], auto_pad = \"SAME_UPPER\"";
        let source = format!(
            "net (float[n, 3, h, w] x) => (y) <float[2, 3, 1, 1] k = {{…}}, float[2, 2, 2, 2] strided = {{…}}>
             {{ c = Conv (x, k) y = {} }}",
            op.replace("SAME", attrs)
        );
        let mut g = parse(&source).unwrap();
        let (k, y) = (g.find("k").unwrap(), g.find("y").unwrap());
        let loss = Builder::new(&mut g, "loss").reduce_all("ReduceSum", y).unwrap();
        let gradients = differentiate(&mut g, &crate::target::CPU, loss, &[k]);
        (g, gradients)
    }

    #[test]
    fn pnet_a_pool_padded_to_the_same_extent_has_a_gradient_over_any_extent() {
        let (g, gradients) = same("MaxPool <SAME> (c)");
        let shape = g.tensor_type(g.find("y").unwrap()).unwrap().shape;
        assert_eq!(shape[2].to_string(), "(h+1)/2");
        assert_eq!(gradients.unwrap().len(), 1);
        for op in ["AveragePool <SAME> (c)", "Conv <SAME> (c, strided)"] {
            let e = same(op).1.unwrap_err().to_string();
            assert!(e.contains("`auto_pad` with a stride of 2 needs the extent h to be a number"), "{e}");
        }
    }
}

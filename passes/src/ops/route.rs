//! `ancre.Route`: one row of a router, r = Σ_i w[row, i] · h_i (spec: `route_k`).
//!
//! Operands: the router's logits, its gate (where it has one), then the sources in the order of the matrix's columns.
//! Attributes: `router` and `row` (0-based); what the router is, [`Graph::routers`] says.
//!
//! Its pullback hands the row's cotangent on: the terms of all rows that read a state become one `ancre.RouteCotangent`,
//! the inner products of all rows one `ancre.RouteWeightsCotangent`, so that a chain of K blocks costs O(K) operators and not
//! O(K²). All three are replaced by plain operators in `transform::lower_routes`.

use super::build::Builder;
use super::*;
use crate::ir::{ANCRE, NodeId};
use indexmap::IndexMap;

pub(super) struct Route;

/// Operands before the sources.
pub(crate) const ROUTE_SOURCES: usize = 2;

impl OpRule for Route {
    fn name(&self) -> &'static str {
        "Route"
    }
    fn domain(&self) -> &'static str {
        ANCRE
    }
    fn infer(&self, cx: &Infer) -> Types {
        let first = cx.ty(ROUTE_SOURCES)?.clone();
        for i in ROUTE_SOURCES..cx.types.len() {
            let other = cx.ty(i)?;
            cx.require(*other == first, || format!("source {} has type {other}, the first has {first}", i - ROUTE_SOURCES))?;
        }
        Ok(vec![first])
    }
    /// h̄_i += w[row, i] · r̄, and w̄[row, i] = ⟨r̄, h_i⟩: both deferred to the whole router's operators.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        // The sources first: a value may be a source of several routers.
        for i in (ROUTE_SOURCES..p.operand_count()).chain(0..ROUTE_SOURCES) {
            p.defer(i, ct);
        }
        Ok(())
    }
    fn gather(
        &self,
        b: &mut Builder,
        cts: &mut Cotangents,
        v: ValueId,
        terms: &[Deferred],
    ) -> Result<Vec<ValueId>, GradError> {
        let (weights, sources): (Vec<_>, Vec<_>) = terms.iter().copied().partition(|t| t.operand < ROUTE_SOURCES);
        let mut out = state_cotangents(b, &sources)?;
        if !weights.is_empty() {
            out.push(weight_cotangent(b, cts, v, &weights)?);
        }
        Ok(out)
    }
    fn samples(&self) -> Vec<Sample> {
        Vec::new()
    }
}

fn attr(b: &Builder, route: NodeId, name: &str) -> i64 {
    b.graph.op(route).map_or(0, |o| o.attrs.int(name, 0))
}

/// One operator for each router and column that the value is.
fn state_cotangents(b: &mut Builder, terms: &[Deferred]) -> Result<Vec<ValueId>, GradError> {
    let mut by_router: IndexMap<(i64, usize), Vec<(i64, Deferred)>> = IndexMap::new();
    for t in terms {
        let key = (attr(b, t.node, "router"), t.operand - ROUTE_SOURCES);
        by_router.entry(key).or_default().push((attr(b, t.node, "row"), *t));
    }
    let mut out = Vec::new();
    for ((router, column), mut rows) in by_router {
        rows.sort_by_key(|(row, _)| *row);
        let first = rows[0].1.node;
        let numbers: Vec<i64> = rows.iter().map(|(row, _)| *row).collect();
        let attrs = Attrs::new().with("router", router).with("column", column as i64).with("rows", numbers);
        let mut operands = vec![b.graph.operand(first, 0), b.graph.operand(first, 1)];
        operands.extend(rows.iter().map(|(_, t)| Some(t.ct)));
        b.prefix = format!("grad/ancre/{router}");
        out.push(b.node(Op::in_domain(ANCRE, "RouteCotangent", attrs), &operands)?[0]);
    }
    Ok(out)
}

/// One operator for the logits' and the gate's cotangents of a router; the other of the two finds its own waiting.
fn weight_cotangent(b: &mut Builder, cts: &mut Cotangents, v: ValueId, terms: &[Deferred]) -> Result<ValueId, GradError> {
    let mut rows: Vec<(i64, Deferred)> = terms.iter().map(|t| (attr(b, t.node, "row"), *t)).collect();
    rows.sort_by_key(|(row, _)| *row);
    // The last row reads every column that the others read.
    let last = rows[rows.len() - 1].1.node;
    let mut operands = b.graph.operands(last).to_vec();
    let (logits, gate) = (operands[0], operands[1]);
    operands.extend(rows.iter().map(|(_, t)| Some(t.ct)));
    let router = attr(b, last, "router");
    let attrs = Attrs::new().with("router", router).with("rows", rows.iter().map(|(row, _)| *row).collect::<Vec<_>>());
    b.prefix = format!("grad/ancre/{router}");
    let results = b.node(Op::in_domain(ANCRE, "RouteWeightsCotangent", attrs), &operands)?;
    let (mine, other, its) =
        if Some(v) == logits { (results[0], gate, results[1]) } else { (results[1], logits, results[0]) };
    if let Some(other) = other
        && cts.contains_key(&other)
    {
        cts.insert(other, vec![Contribution::Value(Cotangent::of(its))]);
    }
    Ok(mine)
}

/// `ancre.RouteCotangent`: what all rows of a router give to one source, Σ_k w[row_k, column] · r̄_k.
/// Operands: logits, gate, then the rows' cotangents. Attributes: `router`, `column`, and `rows`, which rows those are.
pub(super) struct RouteCotangent;

impl OpRule for RouteCotangent {
    fn name(&self) -> &'static str {
        "RouteCotangent"
    }
    fn domain(&self) -> &'static str {
        ANCRE
    }
    fn infer(&self, cx: &Infer) -> Types {
        Ok(vec![cx.ty(ROUTE_SOURCES)?.clone()])
    }
    fn derivative(&self) -> Derivative {
        Derivative::None("second derivatives are not supported")
    }
    fn samples(&self) -> Vec<Sample> {
        Vec::new()
    }
}

/// `ancre.RouteWeightsCotangent`: cotangents of a router's logits [R, C] and gate [R] from the inner products ⟨r̄_k, h_i⟩ of
/// all its rows, through the derivative of its weight rule.
/// Operands: logits, gate, the states in column order, then the rows' cotangents. Attributes: `router`, and `rows`, which rows
/// those are.
pub(super) struct RouteWeightsCotangent;

impl OpRule for RouteWeightsCotangent {
    fn name(&self) -> &'static str {
        "RouteWeightsCotangent"
    }
    fn domain(&self) -> &'static str {
        ANCRE
    }
    fn infer(&self, cx: &Infer) -> Types {
        let logits = cx.ty(0)?.clone();
        let gate = TensorType::new(logits.dtype, vec![logits.shape[0].clone()]);
        Ok(vec![logits, gate])
    }
    fn derivative(&self) -> Derivative {
        Derivative::None("second derivatives are not supported")
    }
    fn samples(&self) -> Vec<Sample> {
        Vec::new()
    }
}

//! Gathers the cotangents of a router's rows into one operator a state and one for logits and gate.

use crate::ir::{ANCRE, Attrs, NodeId, Op, ValueId};
use crate::ops::build::Builder;
use crate::ops::{Contribution, Cotangents, GradError};
use indexmap::IndexMap;

fn route_attrs(b: &Builder, route: NodeId) -> Attrs {
    b.graph.op(route).map(|o| o.attrs.clone()).unwrap_or_default()
}

/// One attribute: copying a route's attributes costs as much as the row is long.
fn route_int(b: &Builder, route: NodeId, name: &str) -> i64 {
    b.graph.op(route).map_or(0, |o| o.attrs.int(name, 0))
}

/// One operator per router for the terms its rows give to a state.
pub(crate) fn state_cotangents(b: &mut Builder, terms: &[(NodeId, i64, ValueId)]) -> Result<Vec<ValueId>, GradError> {
    let mut by_router: IndexMap<(i64, i64), Vec<(NodeId, ValueId)>> = IndexMap::new();
    for (route, column, ct) in terms {
        let router = route_int(b, *route, "router");
        by_router.entry((router, *column)).or_default().push((*route, *ct));
    }
    let mut out = Vec::new();
    for ((router, column), mut rows) in by_router {
        rows.sort_by_key(|(route, _)| route_int(b, *route, "row"));
        let first = rows[0].0;
        let numbers: Vec<i64> = rows.iter().map(|(r, _)| route_int(b, *r, "row")).collect();
        let mut attrs = route_attrs(b, first);
        attrs.0.shift_remove("row");
        attrs.0.shift_remove("columns");
        let attrs = attrs.with("column", column).with("rows", numbers);
        let mut operands = vec![b.graph.operand(first, 0), b.graph.operand(first, 1)];
        operands.extend(rows.iter().map(|(_, ct)| Some(*ct)));
        b.prefix = format!("grad/ancre/{router}");
        out.push(b.node(Op::in_domain(ANCRE, "RouteCotangent", attrs), &operands)?[0]);
    }
    Ok(out)
}

/// One operator for the logits' and the gate's cotangents of a router; the other of the two finds its own waiting.
pub(crate) fn weight_cotangents(
    b: &mut Builder,
    cts: &mut Cotangents,
    v: ValueId,
    terms: &[(NodeId, ValueId)],
) -> Result<Option<ValueId>, GradError> {
    let Some((first, _)) = terms.first() else { return Ok(None) };
    let mut rows: Vec<(i64, NodeId, ValueId)> = terms.iter().map(|(r, ct)| (route_int(b, *r, "row"), *r, *ct)).collect();
    rows.sort_by_key(|(row, ..)| *row);
    let mut states: IndexMap<i64, ValueId> = IndexMap::new();
    for (_, route, _) in &rows {
        let columns = b.graph.op(*route).and_then(|o| o.attrs.ints("columns")).unwrap_or_default();
        let sources = b.graph.operands(*route).iter().skip(2);
        states.extend(columns.iter().zip(sources).filter_map(|(c, s)| Some((*c, (*s)?))));
    }
    states.sort_keys();
    let mut attrs = route_attrs(b, *first);
    attrs.0.shift_remove("row");
    let columns: Vec<i64> = states.keys().copied().collect();
    let attrs = attrs.with("columns", columns).with("rows", rows.iter().map(|(r, ..)| *r).collect::<Vec<_>>());
    let (logits, gate) = (b.graph.operand(*first, 0), b.graph.operand(*first, 1));
    let mut operands = vec![logits, gate];
    operands.extend(states.values().map(|s| Some(*s)));
    operands.extend(rows.iter().map(|(.., ct)| Some(*ct)));
    b.prefix = format!("grad/ancre/{}", attrs.int("router", 0));
    let results = b.node(Op::in_domain(ANCRE, "RouteWeightsCotangent", attrs), &operands)?;
    let (mine, other, its) =
        if Some(v) == logits { (results[0], gate, results[1]) } else { (results[1], logits, results[0]) };
    if let Some(other) = other
        && cts.contains_key(&other)
    {
        cts.insert(other, vec![Contribution::Value(its)]);
    }
    Ok(Some(mine))
}

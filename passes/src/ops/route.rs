//! `ancre.Route`: one row of the all-pairs router, r = Σ_i w[row, column_i] · h_i (spec: `route_k`).
//!
//! Operands: logits [R, C] (for the rule `constant` the weights themselves), gate [R] (rule `gated` only), then the sources.
//! Attributes: `row` (0-based), `columns` (the matrix column of each source), `rule`, `normalize`, `tau`, `router` (an id).
//!
//! Its pullback hands the row's cotangent on: the terms of all rows that read a state become one `ancre.RouteCotangent`,
//! the inner products of all rows one `ancre.RouteWeightsCotangent` (see `transform::route`), so that a chain of K blocks
//! costs O(K) operators and not O(K²). All three are replaced by plain operators in `transform::lower_routes`.

use super::*;
use crate::ir::ANCRE;

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
        let columns = cx.attrs().ints("columns").unwrap_or_default();
        cx.require(columns.len() + ROUTE_SOURCES == cx.types.len(), || {
            format!("{} columns are named for {} operands", columns.len(), cx.types.len())
        })?;
        let first = cx.ty(ROUTE_SOURCES)?.clone();
        for i in ROUTE_SOURCES..cx.types.len() {
            let other = cx.ty(i)?;
            cx.require(*other == first, || format!("source {} has type {other}, the first has {first}", i - ROUTE_SOURCES))?;
        }
        Ok(vec![first])
    }
    /// h̄_i += w[row, i] · r̄, and w̄[row, i] = ⟨r̄, h_i⟩: both deferred to the whole router's operators.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, route) = (p.ct(0)?, p.node());
        let columns = p.attrs().ints("columns").unwrap_or_default().to_vec();
        for (i, column) in columns.into_iter().enumerate() {
            let Some(v) = p.graph().operand(route, ROUTE_SOURCES + i) else {
                return Err(p.unsupported(&format!("source {i} is missing")));
            };
            p.contribute(v, Contribution::Route { route, column, ct });
        }
        for weights in [0, 1] {
            if let Some(v) = p.try_operand(weights) {
                p.contribute(v, Contribution::RouteWeights { route, ct });
            }
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        Vec::new()
    }
}

/// `ancre.RouteCotangent`: what all rows of a router give to one source, Σ_k w[row_k, column] · r̄_k.
/// Operands: logits, gate, then the rows' cotangents. Attributes: `column`, `rows`, and the router's own.
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
/// Operands: logits, gate, the states in column order, then the rows' cotangents. Attributes: `columns`, `rows`, `reads`
/// (how many of the columns each row reads), and the router's own.
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

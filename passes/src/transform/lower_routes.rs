//! Replaces the abstract router operators by plain ones; module `triangular` has the sums and their lowerings.
//!
//! Under `gated` the one-hot part is a plain addition, so that the residual stream stays exact where matrix products are not
//! (TF32): `route = h_near + Σ a (p − onehot) h`.

use super::lower_attention;
pub use super::triangular::Lowering;
use super::triangular::triangular;
use crate::ir::{ANCRE, Attrs, DType, Dim, Graph, NodeId, Normalize, RouterId, RouterSpec, Rule, Sparsity, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::target::Target;
use indexmap::{IndexMap, IndexSet};

/// A router and its operators in the graph.
struct RouterView<'s> {
    id: RouterId,
    spec: &'s RouterSpec,
    routes: Vec<NodeId>,
    cotangents: Vec<NodeId>,
    weights: Vec<NodeId>,
    /// The lowering to take; `None`: by size.
    lowering: Option<Lowering>,
}

impl RouterView<'_> {
    /// A constant matrix [rows, columns] of the router, made of 0 and another number.
    fn matrix(&self, b: &mut Builder, name: &str, [r, c]: [usize; 2], at: impl Fn(usize, usize) -> f32) -> ValueId {
        let values: Vec<f32> = (0..r * c).map(|i| at(i / c, i % c)).collect();
        b.constant(&format!("ancre/{}/{name}", self.id), Tensor::f32s(&[r as i64, c as i64], &values))
    }

    /// 1 where a weight is in use.
    fn used(&self, b: &mut Builder) -> Built {
        let (r, c) = extents(b, self)?;
        Ok(self.matrix(b, "used", [r, c], |row, column| self.spec.uses(row, column) as u8 as f32))
    }

    /// 1 for every row but the first, whose gate is unused.
    fn gated_rows(&self, b: &mut Builder, rows: usize) -> ValueId {
        self.matrix(b, "gated_rows", [rows, 1], |row, _| (row > 0) as u8 as f32)
    }
}

/// The weight rule's values, in plain operators.
struct Weights {
    /// [R, C]: what multiplies the sources (under `gated` without the one-hot part).
    matrix: ValueId,
    /// [R, C]: softmax(c / τ), where the rule has one.
    softmax: Option<ValueId>,
    /// [R, C]: softmax − onehot, under `gated`.
    offset: Option<ValueId>,
}

/// Lowers every router operator of the graph; `lowering` is `None` where the size is to choose.
///
/// # Errors
/// When a node cannot be built; that is a fault of this tool.
pub fn lower_routes(g: &mut Graph, target: &'static Target, lowering: Option<Lowering>) -> Result<(), BuildError> {
    lower_attention::lower_attention(g, target)?;
    let specs = g.routers.clone();
    let mut routers: IndexMap<RouterId, RouterView> = IndexMap::new();
    for id in g.topological_order() {
        let Some(op) = g.op(id).filter(|o| o.domain == ANCRE && o.name.starts_with("Route")) else { continue };
        let router = RouterId(op.int("router") as usize);
        let Some(spec) = specs.get(&router) else { continue };
        let (routes, cotangents, weights) = (Vec::new(), Vec::new(), Vec::new());
        let view = RouterView { id: router, spec, routes, cotangents, weights, lowering };
        let view = routers.entry(router).or_insert(view);
        match op.name.as_str() {
            "Route" => view.routes.push(id),
            "RouteCotangent" => view.cotangents.push(id),
            _ => view.weights.push(id),
        }
    }
    for view in routers.values() {
        lower_router(g, target, view)?;
    }
    Ok(())
}

fn lower_router(g: &mut Graph, target: &'static Target, view: &RouterView) -> Result<(), BuildError> {
    let mut b = Builder::on(g, &format!("ancre/{}", view.id), target);
    let weights = emit_weights(&mut b, view)?;
    let mut done: IndexMap<ValueId, ValueId> = IndexMap::new();

    let mut rows: Vec<(i64, NodeId)> = view.routes.iter().map(|n| (attrs(&b, *n).int("row").unwrap_or(0), *n)).collect();
    rows.sort();
    if let Some((_, longest)) = rows.last() {
        let sources: Vec<ValueId> = b.graph.operands(*longest).iter().skip(2).flatten().copied().collect();
        let targets: Vec<(i64, usize)> = rows.iter().map(|(row, _)| (*row, view.spec.reads(*row as usize))).collect();
        let sums = triangular(&mut b, view.lowering, weights.matrix, &targets, &sources)?;
        for ((_, node), mut sum) in rows.iter().zip(sums) {
            if weights.offset.is_some() {
                let nearest = b.graph.operands(*node).iter().flatten().last().copied();
                if let Some(nearest) = nearest {
                    sum = b.add(nearest, sum)?;
                }
            }
            done.insert(b.graph.result(*node, 0), sum);
        }
    }
    if !view.cotangents.is_empty() {
        b.prefix = format!("grad/ancre/{}", view.id);
        lower_cotangents(&mut b, view, &weights, &mut done)?;
    }
    for node in &view.weights {
        b.prefix = format!("grad/ancre/{}", view.id);
        let (logits, gate) = lower_weights_cotangent(&mut b, view, &weights, *node)?;
        done.insert(b.graph.result(*node, 0), logits);
        if let Some(gate) = gate {
            done.insert(b.graph.result(*node, 1), gate);
        }
    }
    let mut retired: IndexSet<NodeId> = IndexSet::new();
    for (old, new) in done {
        // The sum gets the route's name, by which the metadata and `freeze` find it.
        g.supplant(old, new);
        retired.insert(old.node);
    }
    // The latest is removed first: a state has as many readers as there are rows, and the latest stands first in its list.
    for node in retired.into_iter().rev() {
        g.remove(node);
    }
    Ok(())
}

fn attrs(b: &Builder, n: NodeId) -> Attrs {
    b.graph.op(n).map(|o| o.attrs.clone()).unwrap_or_default()
}

/// Extents [R, C] of the router's matrix.
fn extents(b: &Builder, view: &RouterView) -> Result<(usize, usize), BuildError> {
    let dims = b.ty(view.spec.logits)?.known_dims().unwrap_or_default();
    Ok((dims.first().copied().unwrap_or(0) as usize, dims.get(1).copied().unwrap_or(0) as usize))
}

fn emit_weights(b: &mut Builder, view: &RouterView) -> Result<Weights, BuildError> {
    let spec = view.spec;
    if matches!(spec.rule, Rule::Free | Rule::Constant) {
        let matrix = match spec.sparsity {
            Sparsity::NONE => spec.logits,
            // What no row reads stays without effect, whatever the state has there.
            _ => {
                let used = view.used(b)?;
                b.mul(spec.logits, used)?
            }
        };
        let matrix = of_states(b, view, matrix)?;
        return Ok(Weights { matrix, softmax: None, offset: None });
    }
    let (r, c) = extents(b, view)?;
    // Columns before the chain's own (earlier chains' states) are read by every row.
    let own = c - r;
    let used = |row: usize, column: usize| column <= own + row;
    // The number is finite, so that no runtime trips over an infinity in the file. Its exponential is exactly 0.
    let mask = view.matrix(b, "mask", [r, c], |row, column| if used(row, column) { 0.0 } else { -1e30 });
    let tau = b.scalar(DType::F32, spec.tau as f64);
    let scaled = b.div(spec.logits, tau)?;
    let masked = b.add(scaled, mask)?;
    // The softmax is always over columns: before opset 13 other axes mean something else.
    let outgoing = spec.normalize == Normalize::Outgoing;
    let logits = if outgoing { b.transpose(masked, &[1, 0])? } else { masked };
    let mut softmax = b.op_with("Softmax", Attrs::new().with("axis", 1), &[logits])?;
    if outgoing {
        softmax = b.transpose(softmax, &[1, 0])?;
    }
    let states = of_states(b, view, softmax)?;
    if spec.rule != Rule::Gated {
        b.graph.rename(states, &format!("ancre/{}/weights", view.id));
        return Ok(Weights { matrix: states, softmax: Some(softmax), offset: None });
    }
    let hot = view.matrix(b, "onehot", [r, c], |row, column| (column == own + row) as u8 as f32);
    let mut offset = b.sub(states, hot)?;
    if outgoing {
        // Under `incoming` the first row's offset is 0 by itself.
        let rows = view.gated_rows(b, r);
        offset = b.mul(offset, rows)?;
    }
    let gate = match spec.gate {
        Some(gate) => b.unsqueeze(gate, &[1])?,
        None => b.scalar(DType::F32, 1.0),
    };
    let matrix = b.mul(gate, offset)?;
    b.graph.rename(matrix, &format!("ancre/{}/weights", view.id));
    Ok(Weights { matrix, softmax: Some(softmax), offset: Some(offset) })
}

/// Weights of the states, which sum them up as these weights sum up what is taken of them: Σ_j w_j (h_j − h_{j−1}) = Σ_i (w_i − w_{i+1}) h_i.
fn of_states(b: &mut Builder, view: &RouterView, weights: ValueId) -> Built {
    if !view.spec.weighs_differences() {
        return Ok(weights);
    }
    let next = shifted(b, view, weights, true)?;
    b.sub(weights, next)
}

/// A router's matrix [R, C] with every own column's left or right neighbour in its place, and zeros where there is none.
fn shifted(b: &mut Builder, view: &RouterView, m: ValueId, left: bool) -> Built {
    let (r, c) = extents(b, view)?;
    let (own, n) = (c - r, c as i64);
    let zeros = view.matrix(b, "zero_column", [r, 1], |_, _| 0.0);
    let moved = if c == 1 {
        zeros
    } else if left {
        let rest = b.slice(m, 1, 1, n)?;
        b.concat(&[rest, zeros], 1)?
    } else {
        let rest = b.slice(m, 1, 0, n - 1)?;
        b.concat(&[zeros, rest], 1)?
    };
    if own == 0 {
        return Ok(moved);
    }
    // Earlier chains' columns have no neighbours.
    let first = if left { own } else { own + 1 };
    let kept = view.matrix(b, if left { "own" } else { "after_first" }, [r, c], |_, column| (column >= first) as u8 as f32);
    b.mul(moved, kept)
}

/// The states' cotangents: the same triangular sum over the transposed matrix. Rows and columns are reversed, because the last
/// row's cotangent is there first.
fn lower_cotangents(
    b: &mut Builder,
    view: &RouterView,
    weights: &Weights,
    done: &mut IndexMap<ValueId, ValueId>,
) -> Result<(), BuildError> {
    let (r, c) = extents(b, view)?;
    let own = (c - r) as i64;
    let mut by_row: IndexMap<i64, ValueId> = IndexMap::new();
    let mut columns: Vec<(i64, NodeId, Vec<i64>)> = Vec::new();
    for node in &view.cotangents {
        let a = attrs(b, *node);
        let rows = a.ints("rows").unwrap_or_default().to_vec();
        let cts = b.graph.operands(*node).iter().skip(2);
        by_row.extend(rows.iter().zip(cts).filter_map(|(row, ct)| Some((*row, (*ct)?))));
        columns.push((a.int("column").unwrap_or(0), *node, rows));
    }
    by_row.sort_keys();
    by_row.reverse();
    columns.sort_by_key(|(column, ..)| std::cmp::Reverse(*column));
    let sources: Vec<ValueId> = by_row.values().copied().collect();
    // A'[t, s] = W[last−s, c−1−t]: the rows present follow one another up to the last one that reaches the loss, unless they are sparse.
    let last = by_row.keys().next().copied().unwrap_or(0);
    let sparse = view.spec.sparsity.period > 1;
    let present = if sparse { by_row.keys().copied().collect() } else { (0..=last).rev().collect::<Vec<_>>() };
    let reversed_rows = b.ints(&present);
    let reversed_columns = b.ints(&(0..c as i64).rev().collect::<Vec<_>>());
    let m = b.op_with("Gather", Attrs::new().with("axis", 0), &[weights.matrix, reversed_rows])?;
    let m = b.op_with("Gather", Attrs::new().with("axis", 1), &[m, reversed_columns])?;
    let m = b.transpose(m, &[1, 0])?;
    let targets: Vec<(i64, usize)> = columns.iter().map(|(column, _, rows)| (c as i64 - 1 - column, rows.len())).collect();
    let lowering = if sparse { Some(Lowering::Pairwise) } else { view.lowering };
    let sums = triangular(b, lowering, m, &targets, &sources)?;
    for ((column, node, _), mut sum) in columns.into_iter().zip(sums) {
        if weights.offset.is_some()
            && let Some(ct) = by_row.get(&(column - own))
        {
            sum = b.add(*ct, sum)?;
        }
        done.insert(b.graph.result(node, 0), sum);
    }
    Ok(())
}

/// Inner products of row cotangents and states, through the derivative of the weight rule:
/// c̄ = (1/τ) p ⊙ (Ḡ − Σ p ⊙ Ḡ), and under `gated` Ḡ is scaled by the gate and ā = Σ Ḡ ⊙ (p − onehot).
fn lower_weights_cotangent(
    b: &mut Builder,
    view: &RouterView,
    weights: &Weights,
    node: NodeId,
) -> Result<(ValueId, Option<ValueId>), BuildError> {
    let (r, c) = extents(b, view)?;
    let a = attrs(b, node);
    let rows = a.ints("rows").unwrap_or_default().to_vec();
    let operands: Vec<ValueId> = b.graph.operands(node).iter().skip(2).flatten().copied().collect();
    let count = operands.len() - rows.len();
    let (states, cts) = operands.split_at(count);
    let mut inner = inner_products(b, cts, states)?;
    inner = b.cast(inner, DType::F32)?;
    // Rows without a route (the first one) or past the loss have gradient zero.
    let first = rows.first().copied().unwrap_or(0);
    let after = r as i64 - first - rows.len() as i64;
    let unread = (c - count) as i64;
    inner = pad_zeros(b, inner, view.id, 1, [0, unread], [rows.len() as i64, c as i64])?;
    if view.spec.sparsity.period > 1 {
        let place = view.matrix(b, "place", [r, rows.len()], |row, i| (rows[i] == row as i64) as u8 as f32);
        inner = b.matmul(place, inner)?;
    } else {
        inner = pad_zeros(b, inner, view.id, 0, [first, after], [r as i64, c as i64])?;
    }
    let outgoing = view.spec.normalize == Normalize::Outgoing;
    let deltas = view.spec.weighs_differences();
    // ⟨r̄, h_i − h_{i−1}⟩.
    let of_taken = |b: &mut Builder, inner: ValueId| -> Built {
        let before = shifted(b, view, inner, false)?;
        b.sub(inner, before)
    };
    let Some(p) = weights.softmax else {
        let used = view.used(b)?;
        let inner = if deltas { of_taken(b, inner)? } else { inner };
        return Ok((b.mul(inner, used)?, None));
    };
    let mut gate_ct = None;
    if let (Some(offset), Some(gate)) = (weights.offset, view.spec.gate) {
        let along = b.mul(inner, offset)?;
        gate_ct = Some(b.reduce_sum(along, &[1], false)?);
        let gate = b.unsqueeze(gate, &[1])?;
        inner = b.mul(inner, gate)?;
        if outgoing {
            let rows = view.gated_rows(b, r);
            inner = b.mul(inner, rows)?;
        }
    }
    if deltas {
        inner = of_taken(b, inner)?;
    }
    let weighted = b.mul(inner, p)?;
    let mean = b.reduce_sum(weighted, &[if outgoing { 0 } else { 1 }], true)?;
    let centred = b.sub(inner, mean)?;
    let through = b.mul(p, centred)?;
    let tau = b.scalar(DType::F32, view.spec.tau as f64);
    Ok((b.div(through, tau)?, gate_ct))
}

/// ⟨row cotangent, state⟩ for all pairs: [rows, states]. This is one product, or where a sample is large, a product for each sample
/// and their sum: an engine cannot share out a product of a few rows by a few columns among its threads, however long it is.
fn inner_products(b: &mut Builder, cts: &[ValueId], states: &[ValueId]) -> Built {
    let ty = b.ty(states[0])?;
    let (rows, columns) = (cts.len() as i64, states.len() as i64);
    let sample = ty.shape.iter().skip(1).fold(Dim::from(1), |n, d| &n * d);
    let (pieces, piece, target) = match sample.known() {
        Some(n) if n >= b.target.router.large_sample => (ty.shape[0].clone(), sample, [-1, 1, n]),
        _ => (Dim::from(1), ty.elements(), [1, 1, -1]),
    };
    let single = pieces.is_one();
    let mut stack = |values: &[ValueId]| -> Built {
        let shape = [pieces.clone(), Dim::from(1), piece.clone()];
        let (target, shape) = if single { (&target[1..], &shape[1..]) } else { (&target[..], &shape[..]) };
        let flat: Vec<ValueId> = values.iter().map(|v| b.reshape(*v, target, shape)).collect::<Result<_, _>>()?;
        b.concat(&flat, if single { 0 } else { 1 })
    };
    let (cts, states) = (stack(cts)?, stack(states)?);
    let states = b.transpose_last(states)?;
    let products = b.matmul(cts, states)?;
    if single {
        return Ok(products);
    }
    let products = b.reshape(products, &[-1, rows * columns], &[pieces, Dim::from(rows * columns)])?;
    let ones = b.row_of_ones(products)?;
    let sum = b.matmul(ones, products)?;
    b.reshape(sum, &[rows, columns], &[Dim::from(rows), Dim::from(columns)])
}

/// Zeros before and after a matrix along one axis.
fn pad_zeros(b: &mut Builder, m: ValueId, id: RouterId, axis: usize, around: [i64; 2], whole: [i64; 2]) -> Built {
    let mut zeros = |n: i64| {
        let mut dims = whole;
        dims[axis] = n;
        let values = vec![0.0; (dims[0] * dims[1]) as usize];
        b.constant(&format!("ancre/{id}/zeros"), Tensor::f32s(&dims, &values))
    };
    let [before, after] = around.map(|n| (n > 0).then(|| zeros(n)));
    let parts: Vec<ValueId> = [before, Some(m), after].into_iter().flatten().collect();
    b.concat(&parts, axis as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::residual::find_residuals;
    use crate::ir::TensorType;
    use crate::target::{CPU, CUDA, WASM};
    use crate::transform::route::{RouteOptions, route_skips};

    /// `h ← h + tanh(h w)`, so many times, routed with a gate: the graph and each route's name with its nearest state's.
    fn gated_chain(blocks: usize) -> (Graph, Vec<(String, String)>) {
        let mut g = Graph::default();
        let ty = TensorType::new(DType::F32, vec![Dim::from(2), Dim::from(8)]);
        let mut h = g.add_input("x", ty.into(), None);
        let mut b = Builder::new(&mut g, "");
        for k in 0..blocks {
            b.prefix = format!("block{k}");
            let w = b.graph.add_initializer(&format!("w{k}"), Tensor::f32s(&[8, 8], &[0.1 * k as f32; 64]), false);
            let mixed = b.matmul(h, w).expect("a product");
            let branch = b.op("Tanh", &[mixed]).expect("a branch");
            h = b.add(h, branch).expect("a skip");
        }
        g.add_output(h, None);
        let options = RouteOptions::default();
        let chains = find_residuals(&g).chains;
        route_skips(&mut g, &chains, &options).expect("a router");
        let router = &g.routers[0];
        let named =
            router.rows.iter().map(|(row, route)| (g.name(*route).to_string(), g.name(router.states[*row]).to_string()));
        let named = named.collect();
        (g, named)
    }

    /// Matrix products may be rounded to ten bits (TF32). The one-hot part of a gated route must not pass through one: it is
    /// the nearest state itself, added, and what the products are given is zero at one-hot.
    #[test]
    fn the_one_hot_part_of_a_gated_route_is_a_plain_addition_in_every_lowering() {
        let sizes = [4, 9, 20].into_iter().flat_map(|k| [&CPU, &CUDA, &WASM].map(|t| (k, t, Lowering::choose(t, k))));
        let chosen: Vec<_> = sizes.collect();
        let of_cpu: Vec<Lowering> = chosen.iter().filter(|(_, t, _)| **t == CPU).map(|(.., l)| *l).collect();
        assert_eq!(of_cpu, [Lowering::Pairwise, Lowering::Blocks(16, Some(4)), Lowering::Blocks(16, Some(4))]);
        for (blocks, target, lowering) in chosen {
            let (mut g, routes) = gated_chain(blocks);
            lower_routes(&mut g, target, Some(lowering)).expect("lowered");
            assert_eq!(routes.len(), blocks - 1, "the first row needs no route");
            for (route, nearest) in routes {
                let sum = g.find(&route).expect("the route's name stays");
                assert!(g.is_op(sum.node, "Add"), "{lowering:?}: `{route}` is no addition");
                let (first, rest) = (g.operand(sum.node, 0), g.operand(sum.node, 1).expect("two operands"));
                assert_eq!(first, g.find(&nearest), "{lowering:?}: `{route}` does not start from its nearest state");
                assert!(reads(&g, rest, "ancre/0/weights"), "{lowering:?}: the rest of `{route}` is not by the weights");
                assert!(!reads(&g, rest, &route));
            }
            // weights = gate ⊙ (softmax − onehot): exactly zero at one-hot and at a closed gate.
            let weights = g.find("ancre/0/weights").expect("the weights");
            let offset = g.operand(weights.node, 1).expect("two operands");
            assert!(g.is_op(weights.node, "Mul") && g.is_op(offset.node, "Sub"), "{lowering:?}");
            let hot = g.operand(offset.node, 1).and_then(|v| g.constant(v));
            let hot = hot.and_then(|t| t.to_f32().ok()).expect("the one-hot matrix");
            let diagonal: Vec<f32> = (0..blocks * blocks).map(|i| (i % blocks == i / blocks) as u8 as f32).collect();
            assert_eq!(hot, diagonal);
        }
    }

    /// One product over a full block serves all rows that are left where they are at least half as many as its sources; a few rows read its
    /// chunks themselves. Each chunk is stacked once.
    #[test]
    fn a_full_block_is_multiplied_for_many_rows_and_its_chunks_for_few() {
        for (blocks, products, chunks) in [(20, 0, 5), (26, 1, 6)] {
            let (mut g, _) = gated_chain(blocks);
            lower_routes(&mut g, &CPU, None).expect("lowered");
            let rows = |v: Option<ValueId>| v.and_then(|v| g.tensor_type(v)?.shape[0].known()).unwrap_or(0);
            let of_router = |n: &NodeId| g.name(g.result(*n, 0)).starts_with("ancre/0/");
            let is = |n: &NodeId, names: &[&str]| names.iter().any(|name| g.is_op(*n, name));
            let many = g.nodes().filter(|n| of_router(n) && is(n, &["MatMul", "Gemm"]) && rows(g.operand(*n, 0)) > 1);
            assert_eq!(many.count(), products, "{blocks} blocks");
            let four = |n: &NodeId| is(n, &["Concat"]) && rows(Some(g.result(*n, 0))) == 4;
            assert_eq!(g.nodes().filter(|n| of_router(n) && four(n)).count(), chunks, "{blocks} blocks");
        }
    }

    /// Does a value depend on another by that name?
    fn reads(g: &Graph, v: ValueId, name: &str) -> bool {
        let mut seen = IndexSet::from([v]);
        let mut next = 0;
        while let Some(v) = seen.get_index(next).copied() {
            if g.name(v) == name {
                return true;
            }
            seen.extend(g.reads(v.node));
            next += 1;
        }
        false
    }
}

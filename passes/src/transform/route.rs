//! The router: replaces (or augments) the cascaded skips of residual chains by all-pairs routes.
//!
//! `reassign`, one add a block:
//!
//! ```text
//! before  u1 = Add(h0, f1)   h1 = post(u1)      after  u1 = Add(h0, f1)
//!         u2 = Add(h1, f2)   h2 = post(u2)             r2 = ancre.Route <row = 1> (c, a, h0, h1)   u2 = Add(r2, f2)
//! ```
//!
//! `reassign`, several adds a block (the unit's identity path is replaced, its branches keep their inputs):
//!
//! ```text
//! before  u = Add(h, f)   o = Add(u, g(u))       after  v = Add(r, f)   o = Add(v, g(u))   with u = Add(h, f) kept for g
//! ```
//!
//! `augment`:
//!
//! ```text
//! before  h2 = Block(h1)                         after  h2.block = Block(h1)   h2 = Add(h2.block, r2)
//! ```
//!
//! Formulas: arXiv 2602.09009. A row with a single source of weight one needs no operator and gets none.

use crate::analysis::residual::{Chain, Join};
use crate::ir::build::Builder;
use crate::ir::{ANCRE, Attrs, Graph, Kind, NodeId, Op, Tensor, ValueId};
use crate::ops::{Contribution, Cotangents, GradError};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// How a block takes its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// The identity skip is replaced by the route: the original network at one-hot.
    Reassign,
    /// The route is added to the whole block's output: for training from scratch.
    Augment,
}

/// How many residual adds make one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Every add.
    Add,
    /// One repeated unit of the chain.
    Block,
    /// So many, set by hand.
    Adds(usize),
}

/// The weights of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// softmax(c / τ).
    Softmax,
    /// onehot + a · (softmax(c / τ) − onehot).
    Gated,
    /// c itself.
    Free,
    /// Frozen, uniform.
    Constant,
}

/// Over what the softmax is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalize {
    /// Over the sources of a row.
    Incoming,
    /// Over the targets of a source.
    Outgoing,
}

/// Where the logits start.
#[derive(Clone, Debug, PartialEq)]
pub enum Init {
    /// All zero: equal weights.
    Uniform,
    /// The nearest state with weight exactly one.
    Identity,
    /// The nearest state with weight 1 − ε.
    NearIdentity(f64),
    /// Matrices (and gates) by their name in the file, row-major.
    Given(IndexMap<String, (Vec<usize>, Vec<f32>)>),
}

/// Which chains get a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainChoice {
    /// Every chain with at least two blocks.
    All,
    /// None: the network stays as it is.
    None,
    /// These ids.
    Ids(Vec<usize>),
}

/// What to build.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct RouteOptions {
    pub form: Form,
    pub granularity: Granularity,
    pub rule: Rule,
    pub normalize: Normalize,
    pub init: Init,
    pub tau: f32,
    pub chains: ChainChoice,
}

/// A router that was built.
#[derive(Clone, Debug)]
pub struct Router {
    /// The chain's id.
    pub chain: usize,
    /// Number of blocks K.
    pub blocks: usize,
    /// Residual adds in one block.
    pub adds_per_block: usize,
    /// What a person should know, such as a fall-back.
    pub note: Option<String>,
    /// Logits [K, K] (the weights themselves under `constant` and `free`).
    pub logits: ValueId,
    /// Gate, K elements.
    pub gate: Option<ValueId>,
    /// Block states h_0 … h_K as they are in the routed graph.
    pub states: Vec<ValueId>,
    /// The routes built: 0-based row and its `ancre.Route`.
    pub rows: Vec<(usize, ValueId)>,
    /// `augment`: the adds of block output and route, by row.
    pub sums: Vec<NodeId>,
}

/// Why the router cannot be built as asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RouteError {
    #[error("chain {chain}: {what}")]
    Chain { chain: usize, what: String },
    #[error("there is no chain {0}; `inspect` lists the chains and their ids (0 to {1})")]
    NoSuchChain(usize, usize),
    #[error(
        "the model is already routed (metadata `ancre.router`); start from the original model, or use `freeze` to bake its router in"
    )]
    AlreadyRouted,
    #[error("{0}")]
    Options(String),
}

/// Name of a router's initializer or value.
pub fn router_name(chain: usize, what: &str) -> String {
    format!("ancre.{chain}.{what}")
}

/// Builds the routers of the chosen chains.
///
/// # Errors
/// When the options contradict each other or the model; the graph is then unusable.
pub fn route_skips(g: &mut Graph, chains: &[Chain], options: &RouteOptions) -> Result<Vec<Router>, RouteError> {
    if g.metadata.contains_key("ancre.router") {
        return Err(RouteError::AlreadyRouted);
    }
    check_options(options)?;
    if let ChainChoice::Ids(ids) = &options.chains
        && let Some(bad) = ids.iter().find(|id| !chains.iter().any(|c| c.id == **id))
    {
        return Err(RouteError::NoSuchChain(*bad, chains.len().saturating_sub(1)));
    }
    let mut routers = Vec::new();
    for chain in chains {
        let chosen = match &options.chains {
            ChainChoice::All => true,
            ChainChoice::None => false,
            ChainChoice::Ids(ids) => ids.contains(&chain.id),
        };
        if !chosen || chain.joins.len() < 2 {
            continue;
        }
        let (unit, note) = unit_length(g, chain, options)?;
        let blocks = chain.joins.len().div_ceil(unit);
        if blocks >= 2 {
            routers.push(build(g, chain, options, unit, blocks, note)?);
        }
    }
    Ok(routers)
}

fn check_options(o: &RouteOptions) -> Result<(), RouteError> {
    let fail = |what: &str| Err(RouteError::Options(what.to_string()));
    if !(o.tau > 0.0 && o.tau.is_finite()) {
        return fail("the temperature --tau must be a positive number");
    }
    match (&o.rule, &o.init) {
        (Rule::Free, Init::NearIdentity(_)) => fail("--parametrization free starts at identity, uniform or file:PATH"),
        (Rule::Constant, Init::Identity | Init::NearIdentity(_) | Init::Given(_)) => {
            fail("--parametrization constant is the frozen uniform router and takes no --init")
        }
        (_, Init::NearIdentity(e)) if !(*e > 0.0 && *e < 1.0) => fail("near-identity=EPS needs 0 < EPS < 1"),
        _ => Ok(()),
    }
}

/// Adds in one block, with a note when what was asked cannot be had.
fn unit_length(g: &Graph, chain: &Chain, o: &RouteOptions) -> Result<(usize, Option<String>), RouteError> {
    let asked = match o.granularity {
        Granularity::Add => return Ok((1, None)),
        Granularity::Block if chain.period == 0 => {
            return Ok((1, Some("the chain has no repeated unit; every add is a block".into())));
        }
        Granularity::Block => chain.period,
        Granularity::Adds(0) => return Err(RouteError::Options("--granularity N needs N of 1 or more".into())),
        Granularity::Adds(n) => n,
    };
    if asked > 1
        && o.form == Form::Reassign
        && let Some(why) = not_adds_alone(g, chain, asked)
    {
        return match o.granularity {
            Granularity::Adds(_) => Err(RouteError::Chain {
                chain: chain.id,
                what: format!(
                    "--granularity {asked} with reassign needs each block's input to reach its output through adds alone, but {why}; use --granularity add"
                ),
            }),
            _ => Ok((
                1,
                Some(format!(
                    "every add is a block, because a unit's input does not reach its output through adds alone: {why}"
                )),
            )),
        };
    }
    Ok((asked, None))
}

/// Inside every unit, is each state the plain result of its add and the next add's plain operand?
fn not_adds_alone(g: &Graph, chain: &Chain, unit: usize) -> Option<String> {
    for (j, join) in chain.joins.iter().enumerate() {
        let inner = j % unit != 0;
        if inner && (!join.direct || join.scaled_skip) {
            return Some(format!("the skip into `{}` passes other operators", g.site(join.node).name));
        }
        let ends = j % unit == unit - 1 || j + 1 == chain.joins.len();
        if !ends && chain.states[j + 1].node != join.node {
            return Some(format!("`{}` follows `{}`", g.site(chain.states[j + 1].node).name, g.site(join.node).name));
        }
    }
    None
}

fn build(
    g: &mut Graph,
    chain: &Chain,
    o: &RouteOptions,
    unit: usize,
    blocks: usize,
    note: Option<String>,
) -> Result<Router, RouteError> {
    let ends: Vec<usize> = (1..=blocks).map(|k| (k * unit).min(chain.joins.len())).collect();
    let mut states = vec![chain.states[0]];
    states.extend(ends.iter().map(|e| chain.states[*e]));
    let (logits, gate) = parameters(g, chain.id, blocks, o)?;
    let mut router = Router {
        chain: chain.id,
        blocks,
        adds_per_block: unit,
        note,
        logits,
        gate,
        states,
        rows: Vec::new(),
        sums: Vec::new(),
    };
    for (row, end) in ends.into_iter().enumerate() {
        let joins = &chain.joins[row * unit..end];
        let single = row == 0 && o.normalize == Normalize::Incoming && o.rule != Rule::Free;
        let route = if single { router.states[0] } else { add_route(g, &mut router, o, row) };
        match o.form {
            Form::Reassign if single => {}
            Form::Reassign => reassign(g, joins, route),
            Form::Augment => augment(g, &mut router, row, route),
        }
    }
    Ok(router)
}

fn add_route(g: &mut Graph, router: &mut Router, o: &RouteOptions, row: usize) -> ValueId {
    let columns: Vec<i64> = (0..=row as i64).collect();
    let attrs = Attrs::new()
        .with("router", router.chain as i64)
        .with("row", row as i64)
        .with("columns", columns)
        .with("rule", rule_name(o.rule))
        .with("normalize", if o.normalize == Normalize::Incoming { "incoming" } else { "outgoing" })
        .with("tau", o.tau);
    let mut operands = vec![Some(router.logits), router.gate];
    operands.extend(router.states[..=row].iter().map(|s| Some(*s)));
    let ty = g.value(router.states[0]).ty.clone();
    let name = format!("ancre/{}/route_{}", router.chain, row + 1);
    let node = g.add_op(&name, Op::in_domain(ANCRE, "Route", attrs), &operands);
    let v = g.push_result(node, &name, ty);
    router.rows.push((row, v));
    v
}

/// The attribute value of a rule.
pub fn rule_name(rule: Rule) -> &'static str {
    match rule {
        Rule::Softmax => "softmax",
        Rule::Gated => "gated",
        Rule::Free => "free",
        Rule::Constant => "constant",
    }
}

/// Nodes from the use where a join's skip path begins to the join, in order.
fn skip_path(g: &Graph, join: &Join) -> Vec<NodeId> {
    let mut path = vec![join.node];
    let mut at = join.node;
    // The join's own adds, down to the one that the skip enters.
    while let Some(earlier) =
        g.operands(at).iter().flatten().map(|v| v.node).find(|n| join.also.contains(n) && !path.contains(n))
    {
        path.push(earlier);
        at = earlier;
    }
    if at != join.entry.0
        && let Some(skip) = g.operand(at, join.skip_operand)
    {
        path.extend(way_back(g, skip.node, join.entry.0));
    }
    path.reverse();
    path
}

/// A shortest way from a node back to another along operands, both included. Skip paths are short.
fn way_back(g: &Graph, from: NodeId, to: NodeId) -> Vec<NodeId> {
    let mut reader: IndexMap<NodeId, Option<NodeId>> = IndexMap::from([(from, None)]);
    let mut next = 0;
    while let Some((&node, _)) = reader.get_index(next) {
        next += 1;
        if node == to {
            let mut way = vec![node];
            while let Some(Some(n)) = way.last().and_then(|n| reader.get(n)) {
                way.push(*n);
            }
            way.reverse();
            return way;
        }
        for v in g.operands(node).iter().flatten() {
            reader.entry(v.node).or_insert(Some(node));
        }
    }
    Vec::new()
}

/// Copies the nodes of a skip path, starting from another value; returns the copy of the last node's result.
fn copy_path(g: &mut Graph, path: &[NodeId], entry: (NodeId, usize), start: ValueId) -> ValueId {
    let mut carried = start;
    let mut replaced: Option<ValueId> = None;
    for id in path {
        let mut operands = g.operands(*id);
        if *id == entry.0 {
            operands[entry.1] = Some(carried);
        } else {
            for v in operands.iter_mut().filter(|v| **v == replaced) {
                *v = Some(carried);
            }
        }
        let Kind::Op(op) = g.node(*id).kind.clone() else { break };
        let old = g.result(*id, 0);
        let ty = g.value(old).ty.clone();
        let name = format!("{}.routed", g.name(old));
        let node = g.add_op("", op, &operands);
        carried = g.push_result(node, &name, ty);
        g.node_mut(node).name = g.name(carried).to_string();
        replaced = Some(old);
    }
    carried
}

fn reassign(g: &mut Graph, joins: &[Join], route: ValueId) {
    let mut carried = route;
    let Some((last, inner)) = joins.split_last() else { return };
    for join in inner {
        let path = skip_path(g, join);
        carried = copy_path(g, &path, join.entry, carried);
    }
    let path = skip_path(g, last);
    // What lies on the skip path may be read by others too (a cast of the state that the branch shares): those keep the original.
    let shared = path[..path.len() - 1].iter().any(|n| g.uses(g.result(*n, 0)).len() > 1);
    if !shared {
        g.set_operand(last.entry.0, last.entry.1, Some(carried));
        return;
    }
    let old = g.result(path[path.len() - 2], 0);
    let new = copy_path(g, &path[..path.len() - 1], last.entry, carried);
    g.replace_uses(old, new, |n| n == last.node);
}

fn augment(g: &mut Graph, router: &mut Router, row: usize, route: ValueId) {
    let block = router.states[row + 1];
    let ty = g.value(block).ty.clone();
    let name = format!("ancre/{}/augment_{}", router.chain, row + 1);
    let add = g.add_op(&name, Op::new("Add", Attrs::new()), &[Some(block), Some(route)]);
    let block_name = format!("{}.block", g.name(block));
    let sum = g.push_result(add, &block_name, ty);
    let was_output = g.is_output(block);
    g.replace_uses(block, sum, |n| n != add);
    if was_output {
        g.redirect_output(block, sum);
    }
    g.swap_names(block, sum);
    router.states[row + 1] = sum;
    router.sums.push(add);
}

// ---- parameters -----------------------------------------------------------------------------------------------------

fn parameters(g: &mut Graph, chain: usize, k: usize, o: &RouteOptions) -> Result<(ValueId, Option<ValueId>), RouteError> {
    let name = router_name(chain, if o.rule == Rule::Constant { "weights" } else { "logits" });
    let gate_name = router_name(chain, "gate");
    let matrix = match &o.init {
        Init::Given(given) => {
            let (shape, values) = given.get(&name).ok_or_else(|| RouteError::Chain {
                chain,
                what: format!("the --init file holds no `{name}`; it holds {}", list(given.keys())),
            })?;
            if *shape != [k, k] {
                return Err(RouteError::Chain {
                    chain,
                    what: format!("`{name}` in the --init file has shape {shape:?}, expected [{k}, {k}]"),
                });
            }
            values.clone()
        }
        _ => initial_matrix(k, o),
    };
    let logits = g.add_initializer(&name, Tensor::f32s(&[k as i64, k as i64], &matrix), false);
    let gate = (o.rule == Rule::Gated).then(|| {
        let values = match &o.init {
            Init::Given(given) => match given.get(&gate_name) {
                Some((shape, values)) if *shape == [k] => Ok(values.clone()),
                Some((shape, _)) => Err(RouteError::Chain {
                    chain,
                    what: format!("`{gate_name}` in the --init file has shape {shape:?}, expected [{k}]"),
                }),
                None => Ok(vec![0.0; k]),
            },
            _ => Ok(vec![0.0; k]),
        }?;
        Ok(g.add_initializer(&gate_name, Tensor::f32s(&[k as i64], &values), false))
    });
    Ok((logits, gate.transpose()?))
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

/// The K × K logits a router starts from (weights, for `free` and `constant`), row-major.
pub fn initial_matrix(k: usize, o: &RouteOptions) -> Vec<f32> {
    let tau = o.tau as f64;
    let mut m = vec![0f32; k * k];
    for row in 0..k {
        for column in 0..=row {
            let competing = if o.normalize == Normalize::Incoming { row + 1 } else { k - column };
            let nearest = row == column;
            m[row * k + column] = match (o.rule, &o.init) {
                (Rule::Constant, _) | (Rule::Free, Init::Uniform) => (1.0 / competing as f64) as f32,
                (Rule::Free, _) => nearest as u8 as f32,
                (_, Init::Identity) if nearest && competing > 1 => (128.0 * tau) as f32,
                (_, Init::NearIdentity(e)) if nearest && competing > 1 => {
                    (tau * ((1.0 - e) * (competing - 1) as f64 / e).ln()) as f32
                }
                _ => 0.0,
            };
        }
    }
    m
}

/// Logits or weights that make every row one-hot on its nearest state, whatever the rule: (matrix, gate).
pub fn one_hot_parameters(k: usize, o: &RouteOptions) -> (Vec<f32>, Vec<f32>) {
    if matches!(o.rule, Rule::Free | Rule::Constant) {
        return ((0..k * k).map(|i| (i / k == i % k) as u8 as f32).collect(), vec![1.0; k]);
    }
    (initial_matrix(k, &RouteOptions { init: Init::Identity, ..o.clone() }), vec![1.0; k])
}

/// The weights a K × K router has, in f64: the reference that lowerings are compared with. Row-major; unused entries 0.
pub fn reference_weights(
    logits: &[f32],
    gate: Option<&[f32]>,
    k: usize,
    rule: Rule,
    normalize: Normalize,
    tau: f32,
) -> Vec<f64> {
    let at = |r: usize, c: usize| r * k + c;
    let mut w = vec![0f64; k * k];
    for row in 0..k {
        for column in 0..=row {
            w[at(row, column)] = logits[at(row, column)] as f64;
        }
    }
    if matches!(rule, Rule::Free | Rule::Constant) {
        return w;
    }
    let groups: Vec<Vec<usize>> = match normalize {
        Normalize::Incoming => (0..k).map(|r| (0..=r).map(|c| at(r, c)).collect()).collect(),
        Normalize::Outgoing => (0..k).map(|c| (c..k).map(|r| at(r, c)).collect()).collect(),
    };
    for group in groups {
        let top = group.iter().map(|i| w[*i]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = group.iter().map(|i| ((w[*i] - top) / tau as f64).exp()).sum();
        for i in group {
            w[i] = ((w[i] - top) / tau as f64).exp() / total;
        }
    }
    if let (Rule::Gated, Some(gate)) = (rule, gate) {
        for row in 0..k {
            let a = if row == 0 { 0.0 } else { gate[row] as f64 };
            for column in 0..=row {
                let hot = (row == column) as u8 as f64;
                w[at(row, column)] = hot + a * (w[at(row, column)] - hot);
            }
        }
    }
    w
}

// ---- cotangents -----------------------------------------------------------------------------------------------------

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
        let sources = b.graph.operands(*route).into_iter().skip(2);
        states.extend(columns.iter().zip(sources).filter_map(|(c, s)| Some((*c, s?))));
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

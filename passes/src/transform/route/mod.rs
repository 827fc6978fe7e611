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

mod network;
mod params;
mod wire;

pub use params::{initial_matrix, one_hot_parameters, reference_weights};

use crate::analysis::residual::Chain;
use crate::contract::{ChainStates, Chains, Record, RouterRecord};
use crate::ir::{ANCRE, Attrs, Graph, Op, ValueId};
pub use crate::ir::{Form, Normalize, RouterId, RouterSpec, Rule, Scope, Source};
use crate::refusal::Hint;
use indexmap::IndexMap;

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

impl std::fmt::Display for Granularity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Granularity::Add => f.write_str("add"),
            Granularity::Block => f.write_str("block"),
            Granularity::Adds(n) => n.fmt(f),
        }
    }
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

impl std::fmt::Display for Init {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Init::Uniform => f.write_str("uniform"),
            Init::Identity => f.write_str("identity"),
            Init::NearIdentity(e) => write!(f, "near-identity={e}"),
            Init::Given(_) => f.write_str("file"),
        }
    }
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
    pub scope: Scope,
    pub rule: Rule,
    pub normalize: Normalize,
    pub init: Init,
    pub tau: f32,
    pub chains: ChainChoice,
}

impl Default for RouteOptions {
    /// Every skip reassigned, gated, uniform: a router that trains well from a trained network.
    fn default() -> RouteOptions {
        RouteOptions {
            form: Form::Reassign,
            granularity: Granularity::Add,
            scope: Scope::Stage,
            rule: Rule::Gated,
            normalize: Normalize::Incoming,
            init: Init::Uniform,
            tau: 0.01,
            chains: ChainChoice::All,
        }
    }
}

/// What [`route_skips`] did, besides the graph's routers.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// What a person should know of a router, such as a fall-back.
    pub notes: IndexMap<RouterId, String>,
    /// Chosen chains that got none though other states might have been read, with the reason they were not.
    pub left_alone: Vec<LeftAlone>,
}

/// A chain that got no router.
#[derive(Clone, Debug)]
pub struct LeftAlone {
    /// The chain's id.
    pub chain: usize,
    /// Why.
    pub why: String,
    /// What a person may do.
    pub hint: Option<Hint>,
}

/// Why the router cannot be built as asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RouteError {
    #[error("chain {chain}: {what}")]
    Chain { chain: usize, what: String, hint: Option<Hint> },
    #[error("there is no chain {0}; `inspect` lists the chains and their ids (0 to {1})")]
    NoSuchChain(usize, usize),
    #[error(
        "the model is already routed (metadata `ancre.router`); start from the original model, or use `freeze` to bake its router in"
    )]
    AlreadyRouted,
    #[error("{0}")]
    Options(&'static str, Hint),
}

impl RouteError {
    /// What a person may do.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            RouteError::Chain { hint, .. } => hint.clone(),
            RouteError::Options(_, hint) => Some(hint.clone()),
            _ => None,
        }
    }
}

/// Name of a router's initializer or value.
pub fn router_name(chain: usize, what: &str) -> String {
    format!("ancre.{chain}.{what}")
}

/// Builds the routers of the chosen chains.
///
/// # Errors
/// When the options contradict each other or the model; the graph is then unusable.
pub fn route_skips(g: &mut Graph, chains: &[Chain], options: &RouteOptions) -> Result<Routed, RouteError> {
    if RouterRecord::is_in(g) {
        return Err(RouteError::AlreadyRouted);
    }
    check_options(options)?;
    if let ChainChoice::Ids(ids) = &options.chains
        && let Some(bad) = ids.iter().find(|id| !chains.iter().any(|c| c.id == **id))
    {
        return Err(RouteError::NoSuchChain(*bad, chains.len().saturating_sub(1)));
    }
    let mut routed = Routed::default();
    let mut earlier = (options.scope == Scope::Network).then(|| network::Earlier::new(g, chains));
    // Under `augment` a state is replaced by its sum with a route.
    let mut replaced: IndexMap<ValueId, ValueId> = IndexMap::new();
    for (place, chain) in chains.iter().enumerate() {
        let chosen = match &options.chains {
            ChainChoice::All => true,
            ChainChoice::None => false,
            ChainChoice::Ids(ids) => ids.contains(&chain.id),
        };
        let (unit, note) = match unit_length(g, chain, options) {
            Ok(found) => found,
            Err(e) if chosen && chain.joins.len() > 1 => return Err(e),
            Err(_) => (1, None),
        };
        let ends = (1..=chain.joins.len().div_ceil(unit)).map(|k| (k * unit).min(chain.joins.len()));
        let original: Vec<ValueId> = [0].into_iter().chain(ends).map(|end| chain.states[end]).collect();
        let mut states: Vec<ValueId> = original.iter().map(|s| *replaced.get(s).unwrap_or(s)).collect();
        let mut plan = Plan { unit, notes: note.into_iter().collect(), states: states.clone(), sources: Vec::new() };
        if chosen && let Some(earlier) = &earlier {
            let admitted = earlier.admit(g, chain, place, &states)?;
            plan.sources = admitted.sources;
            plan.notes.extend(admitted.note);
        }
        if chosen && let Some(why) = too_many_weights(states.len() - 1, plan.sources.len()) {
            routed.left_alone.push(LeftAlone { chain: chain.id, why, hint: Some(Hint::LargerBlocks) });
            continue;
        }
        // Types that nothing tells (results of fused operators of other domains) leave nothing to lower the router by.
        let typed = states.iter().all(|s| g.tensor_type(*s).is_some());
        // A single block without other sources has nothing to learn.
        if chosen && !typed && states.len() > 2 {
            let unknown = states.iter().find(|s| g.tensor_type(**s).is_none()).map_or("", |s| g.name(*s));
            let why = format!(
                "the type of its state `{unknown}` is not known; run onnx.shape_inference on the model, or export it unfused"
            );
            routed.left_alone.push(LeftAlone { chain: chain.id, why, hint: None });
        } else if chosen && (states.len() > 2 || !plan.sources.is_empty()) {
            let id = RouterId(chain.id);
            if !plan.notes.is_empty() {
                routed.notes.insert(id, plan.notes.join("; "));
            }
            let router = build(g, chain, options, plan)?;
            states.clone_from(&router.states);
            replaced.extend(original.iter().copied().zip(states.iter().copied()).filter(|(old, new)| old != new));
            g.routers.insert(id, router);
        } else if chosen && options.scope == Scope::Network && !plan.notes.is_empty() {
            routed.left_alone.push(LeftAlone { chain: chain.id, why: plan.notes.join("; "), hint: None });
        }
        if let Some(earlier) = &mut earlier {
            earlier.add(place, &original, &states);
        }
    }
    Ok(routed)
}

/// Edges of a chain's router beyond which it gets none: the graph would not fit into memory.
const MOST_EDGES: usize = 1 << 23;

/// Why a chain of so many blocks, whose rows read so many earlier states too, gets no router.
fn too_many_weights(blocks: usize, sources: usize) -> Option<String> {
    let edges = blocks.saturating_mul(blocks + 1) / 2 + blocks * sources;
    (edges > MOST_EDGES)
        .then(|| format!("its {blocks} blocks would have {edges} weights, more than {MOST_EDGES}; larger blocks have fewer"))
}

/// How one chain will be routed.
struct Plan {
    /// Adds in one block.
    unit: usize,
    notes: Vec<String>,
    /// Block states, before routing.
    states: Vec<ValueId>,
    sources: Vec<Source>,
}

fn check_options(o: &RouteOptions) -> Result<(), RouteError> {
    let fail = |what, hint| Err(RouteError::Options(what, hint));
    if !(o.tau > 0.0 && o.tau.is_finite()) {
        return fail("the temperature must be a positive number", Hint::Temperature);
    }
    if o.scope == Scope::Network && o.normalize == Normalize::Outgoing {
        let what = "a router that reads the states of earlier chains normalises over a row's sources";
        return fail(what, Hint::NormalizeIncoming);
    }
    match (&o.rule, &o.init) {
        (Rule::Free, Init::NearIdentity(_)) => fail("free weights have no start near the identity", Hint::ChooseInit),
        (Rule::Constant, Init::Identity | Init::NearIdentity(_) | Init::Given(_)) => {
            fail("the constant router is the frozen uniform one and has no other start", Hint::ChooseInit)
        }
        (_, Init::NearIdentity(e)) if !(*e > 0.0 && *e < 1.0) => {
            fail("a start near the identity is at a distance above 0 and below 1", Hint::ChooseInit)
        }
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
        Granularity::Adds(0) => return Err(RouteError::Options("a block has at least one add", Hint::LargerBlocks)),
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
                    "in blocks of {asked} adds, whose skips are reassigned, a block's input has to reach its output through adds alone, but {why}"
                ),
                hint: Some(Hint::SingleAdds),
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

fn build(g: &mut Graph, chain: &Chain, o: &RouteOptions, plan: Plan) -> Result<RouterSpec, RouteError> {
    let blocks = plan.states.len() - 1;
    let (logits, gate) = params::parameters(g, chain.id, blocks, plan.sources.len(), o)?;
    let mut router = RouterSpec {
        form: o.form,
        rule: o.rule,
        normalize: o.normalize,
        tau: o.tau,
        scope: o.scope,
        granularity: o.granularity.to_string(),
        init: o.init.to_string(),
        adds_per_block: plan.unit,
        logits,
        gate,
        sources: plan.sources,
        states: plan.states,
        rows: Vec::new(),
    };
    for (row, joins) in chain.joins.chunks(plan.unit).enumerate() {
        let single = row == 0 && router.sources.is_empty() && o.normalize == Normalize::Incoming && o.rule != Rule::Free;
        let route = if single { router.states[0] } else { add_route(g, &mut router, chain.id, row) };
        match o.form {
            Form::Reassign if single => {}
            Form::Reassign => wire::reassign(g, joins, route),
            Form::Augment => wire::augment(g, &mut router, chain.id, row, route),
        }
    }
    Ok(router)
}

fn add_route(g: &mut Graph, router: &mut RouterSpec, id: usize, row: usize) -> ValueId {
    let attrs = Attrs::new().with("router", id as i64).with("row", row as i64);
    let mut operands = vec![Some(router.logits), router.gate];
    operands.extend(router.columns().take(router.reads(row)).map(Some));
    let ty = g.value(router.states[0]).ty.clone();
    let name = format!("ancre/{id}/route_{}", row + 1);
    let node = g.add_op(&name, Op::in_domain(ANCRE, "Route", attrs), &operands);
    let v = g.push_result(node, &name, ty);
    router.rows.push((row, v));
    v
}

/// Writes into the metadata what later tools need to read the routers, and which chains there are.
pub fn describe(g: &mut Graph, chains: &[Chain]) {
    let Some(record) = RouterRecord::of(g) else { return };
    record.write(g);
    let name = |v: &ValueId| g.name(*v).to_string();
    let chain = |c: &Chain| ChainStates {
        id: c.id,
        blocks: c.joins.len(),
        adds: c.joins.iter().map(|j| g.site(j.node).name).collect(),
        states: c.states.iter().map(name).collect(),
    };
    Chains(chains.iter().map(chain).collect()).write(g);
}

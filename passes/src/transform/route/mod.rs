//! The router: all-pairs routes replace the cascaded skips of residual chains, or all that blocks read, or stand beside the blocks.
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
//! `input`:
//!
//! ```text
//! before  h2 = Block(h1)                         after  h2 = Block(r2)   (whatever in the block read h1 reads r2)
//! ```
//!
//! The formulas are those of arXiv 2602.09009. A row with a single source of weight one needs no operator and gets none.

mod growth;
mod input;
mod network;
mod params;
mod wire;

pub use growth::unnormalised_growth;
pub(crate) use params::RMS_EPSILON;
pub use params::{AttentionRow, Weighing, one_hot_parameters, reference_weights};

use crate::analysis::residual::Chain;
use crate::contract::{ChainStates, Chains, Record, RouterRecord};
use crate::ir::{ANCRE, Attrs, Graph, NodeId, Op, ValueId, words};
pub use crate::ir::{Form, Normalize, RouterId, RouterSpec, Rule, Scope, Source, Sources, Sparsity};
use crate::refusal::Hint;
use indexmap::IndexMap;
use std::collections::HashSet;

/// How many residual adds make one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// An add.
    Add,
    /// One repeated unit of the chain.
    Block,
    /// A number of adds.
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

words! {
    /// Options that belong together.
    Preset {
        /// For a trained network: every skip reassigned, gated, uniform.
        Finetune = "finetune",
        /// For deep networks from scratch, by docs/evidence.md: each block reads the sum, softmax with a temperature of 0.1, uniform.
        Deep = "deep",
        /// As published, for training from scratch: a route added to each block, softmax, uniform.
        Paper = "paper",
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
    /// Matrices and gates of a file: by name, the shape and the values, row-major.
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
    /// No chain: the network stays as it is.
    None,
    /// The chains of these ids.
    Ids(Vec<usize>),
}

/// What to build.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct RouteOptions {
    pub form: Form,
    pub granularity: Granularity,
    pub scope: Scope,
    pub rule: Rule,
    pub normalize: Normalize,
    pub init: Init,
    pub tau: f32,
    pub sources: Sources,
    pub sparsity: Sparsity,
    pub chains: ChainChoice,
}

impl RouteOptions {
    /// The options of a preset.
    pub fn preset(preset: Preset) -> RouteOptions {
        let (form, granularity, rule) = match preset {
            Preset::Finetune => (Form::Reassign, Granularity::Add, Rule::Gated),
            Preset::Deep => (Form::Input, Granularity::Add, Rule::Softmax),
            Preset::Paper => (Form::Augment, Granularity::Block, Rule::Softmax),
        };
        RouteOptions {
            form,
            granularity,
            scope: Scope::Stage,
            rule,
            normalize: Normalize::Incoming,
            init: Init::Uniform,
            // A step of Adam moves a logit by about the learning rate: at 0.01 a row is one-hot after a few.
            tau: if preset == Preset::Deep { 0.1 } else { 0.01 },
            sources: Sources::States,
            sparsity: Sparsity::NONE,
            chains: ChainChoice::All,
        }
    }
}

impl Default for RouteOptions {
    /// A router that trains well from a trained network.
    fn default() -> RouteOptions {
        RouteOptions::preset(Preset::Finetune)
    }
}

/// What [`route_skips`] did, besides the graph's routers.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// Notes on a router, such as a fall-back.
    pub notes: IndexMap<RouterId, String>,
    /// Chosen chains that got no router though their rows might have read other states, with the reason.
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
#[non_exhaustive]
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
    let mut fed = Vec::new();
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
        let states: Vec<ValueId> = original.iter().map(|s| *replaced.get(s).unwrap_or(s)).collect();
        let mut blocks = Blocks { unit, notes: note.into_iter().collect(), states, sources: Vec::new() };
        if let Some(read) = input::read(&fed, &blocks.states) {
            blocks.states[0] = read;
        }
        let states = if chosen {
            if let Some(earlier) = &earlier {
                let admitted = earlier.admit(g, chain, place, &blocks.states)?;
                blocks.sources = admitted.sources;
                blocks.notes.extend(admitted.note);
            }
            let Some(states) = route_chain(g, chain, options, blocks, &mut routed, &mut fed)? else { continue };
            states
        } else {
            blocks.states
        };
        // A state that is read in another's place is no other state.
        let states = if options.form == Form::Augment { states } else { original.clone() };
        replaced.extend(original.iter().copied().zip(states.iter().copied()).filter(|(old, new)| old != new));
        if let Some(earlier) = &mut earlier {
            earlier.add(place, &original, &states);
        }
    }
    Ok(routed)
}

/// Builds the router of a chain, or says why it gets none. Returns its block states from then on; `None`: no later chain reads them.
fn route_chain(
    g: &mut Graph,
    chain: &Chain,
    options: &RouteOptions,
    blocks: Blocks,
    routed: &mut Routed,
    fed: &mut Vec<input::Fed>,
) -> Result<Option<Vec<ValueId>>, RouteError> {
    let mut leave = |why, hint| routed.left_alone.push(LeftAlone { chain: chain.id, why, hint });
    if let Some(why) = too_many_weights(blocks.states.len() - 1, blocks.sources.len()) {
        leave(why, Some(Hint::LargerBlocks));
        return Ok(None);
    }
    // A single block without other sources has nothing to learn.
    let several = blocks.states.len() > 2;
    // A router cannot be lowered without types. Nothing tells those of the results of fused operators of other domains.
    let unknown = blocks.states.iter().find(|s| g.tensor_type(**s).is_none());
    let features = if options.rule == Rule::Attention { network::features(g, chain) } else { Ok((0, 0)) };
    let reads = options.form == Form::Input && (several || !blocks.sources.is_empty());
    let inside = if reads { input::blocks(g, &blocks.states) } else { Vec::new() };
    let first = blocks.states.first().and_then(|s| g.tensor_type(*s));
    let differs = |s: &&ValueId| g.tensor_type(**s).zip(first.as_ref()).is_some_and(|(ty, first)| !ty.may_be(first));
    let other = blocks.states.iter().find(differs);
    if let Some(unknown) = unknown.filter(|_| several) {
        leave(g.untyped(*unknown), None);
    } else if let Some(other) = other.filter(|_| several) {
        leave(format!("its state `{}` is {}, another type than the first's", g.name(*other), g.value(*other).ty), None);
    } else if let Some(why) = input::refusal(g, &blocks.states, &inside) {
        leave(why, Some(Hint::Reassign));
    } else if let (Err(why), true) = (&features, several || !blocks.sources.is_empty()) {
        leave(why.clone(), None);
    } else if several || !blocks.sources.is_empty() {
        let id = RouterId(chain.id);
        if !blocks.notes.is_empty() {
            routed.notes.insert(id, blocks.notes.join("; "));
        }
        let router = build(g, chain, options, blocks, features.unwrap_or_default(), inside, fed)?;
        let states = router.states.clone();
        g.routers.insert(id, router);
        return Ok(Some(states));
    } else if options.scope == Scope::Network && !blocks.notes.is_empty() {
        leave(blocks.notes.join("; "), None);
    }
    Ok(Some(blocks.states))
}

/// Largest number of a router's edges. The graph of a larger router would not fit into memory.
const MOST_EDGES: usize = 1 << 23;

/// Why a chain of so many blocks, whose rows also read so many earlier states, gets no router.
fn too_many_weights(blocks: usize, sources: usize) -> Option<String> {
    let edges = blocks.saturating_mul(blocks + 1) / 2 + blocks * sources;
    (edges > MOST_EDGES)
        .then(|| format!("its {blocks} blocks would have {edges} weights, more than {MOST_EDGES}; larger blocks have fewer"))
}

/// The blocks of one chain.
struct Blocks {
    /// Adds in one block.
    unit: usize,
    notes: Vec<String>,
    /// Block states, before routing.
    states: Vec<ValueId>,
    /// States of earlier chains that the rows read too.
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
    if o.rule == Rule::Attention && o.normalize == Normalize::Outgoing {
        return fail("attention normalises over a row's sources", Hint::NormalizeIncoming);
    }
    let Sparsity { dilation, period, summaries } = o.sparsity;
    if dilation == 0 || period == 0 || summaries == 0 {
        return fail("dilation, period and summaries are numbers of at least 1", Hint::SparseRows);
    }
    let sparse = dilation > 1 || period > 1;
    if (sparse || summaries > 1 && o.rule != Rule::Attention) && (o.rule != Rule::Free || o.sources == Sources::Deltas) {
        let what = if sparse {
            "only free weights of states can be sparse"
        } else {
            "only attention and free weights of states read summaries"
        };
        return fail(what, if sparse { Hint::SparseRows } else { Hint::Summaries });
    }
    let exact = matches!(o.init, Init::Identity | Init::NearIdentity(_));
    if o.rule == Rule::Attention && exact {
        return fail("attention starts at equal weights: no query makes a row its nearest source", Hint::ChooseInit);
    }
    if o.form == Form::Input && o.sources == Sources::Deltas && o.rule == Rule::Gated {
        return fail(
            "a gate leaves the nearest state, which is none of the deltas that a block's input sums up",
            Hint::NoGate,
        );
    }
    if o.sources == Sources::Deltas && exact && o.rule != Rule::Free {
        return fail(
            "a softmax over deltas has no start at the identity, where the weight of each is one",
            Hint::ChooseInit,
        );
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

/// Number of adds in one block, with a note if that is not what was asked for.
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
    let alone = if asked > 1 && o.form == Form::Reassign { not_adds_alone(g, chain, asked) } else { None };
    let Some(why) = alone else { return Ok((asked, None)) };
    if matches!(o.granularity, Granularity::Adds(_)) {
        let what = format!(
            "in blocks of {asked} adds, whose skips are reassigned, a block's input has to reach its output through adds alone, but {why}"
        );
        return Err(RouteError::Chain { chain: chain.id, what, hint: Some(Hint::SingleAdds) });
    }
    let note = format!("every add is a block, because a unit's input does not reach its output through adds alone: {why}");
    Ok((1, Some(note)))
}

/// Why a state inside a unit is not the plain result of its add, or not the next add's plain operand.
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

/// Builds a chain's router; features: their axis and number, under `attention`; inside: the nodes of each block, under `input`.
fn build(
    g: &mut Graph,
    chain: &Chain,
    o: &RouteOptions,
    blocks: Blocks,
    (axis, features): (usize, usize),
    mut inside: Vec<HashSet<NodeId>>,
    fed: &mut Vec<input::Fed>,
) -> Result<RouterSpec, RouteError> {
    // The record of a router names its states, of which a fused operator may leave one nameless that nobody else reads.
    for (k, state) in blocks.states.iter().enumerate().filter(|(_, s)| g.name(**s).is_empty()).collect::<Vec<_>>() {
        g.rename(*state, &format!("ancre/{}/state_{k}", chain.id));
    }
    let unit = blocks.unit;
    let (logits, gate) = params::parameters(g, chain.id, blocks.states.len() - 1, blocks.sources.len(), features, o)?;
    let mut router = RouterSpec {
        form: o.form,
        rule: o.rule,
        normalize: o.normalize,
        tau: o.tau,
        taken: o.sources,
        sparsity: o.sparsity,
        axis,
        features,
        scope: o.scope,
        granularity: o.granularity.to_string(),
        init: o.init.to_string(),
        adds_per_block: blocks.unit,
        logits,
        gate,
        sources: blocks.sources,
        states: blocks.states,
        deltas: Vec::new(),
        rows: Vec::new(),
    };
    for (row, joins) in chain.joins.chunks(unit).enumerate().filter(|(row, _)| row.is_multiple_of(o.sparsity.period)) {
        let single = row == 0 && router.sources.is_empty() && o.normalize == Normalize::Incoming && o.rule != Rule::Free;
        let route = if single { router.states[0] } else { add_route(g, &mut router, chain.id, row) };
        match o.form {
            Form::Reassign if single => {}
            Form::Reassign => wire::reassign(g, joins, route),
            Form::Augment => wire::augment(g, &mut router, chain.id, row, route),
            Form::Input => {
                let (begin, end) = (router.states[row], router.states[row + 1]);
                if let Some(nodes) = inside.get_mut(row).filter(|_| !single) {
                    fed.push(input::feed(g, begin, route, std::mem::take(nodes)));
                }
                if o.sources.are_values(o.form) && row + 1 < router.blocks() {
                    input::add_delta(g, &mut router, chain.id, row + 1, [end, route]);
                }
            }
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

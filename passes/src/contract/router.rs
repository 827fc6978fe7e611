//! `ancre.router`: the routers of a graph, their values by name.

use super::Absent;
use crate::ir::{Form, Graph, Normalize, RouterId, RouterSpec, Rule, Scope, Source, Sources, Sparsity, ValueId};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// The routers of a graph and what they have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RouterRecord {
    pub form: Form,
    pub granularity: String,
    pub scope: Scope,
    pub parametrization: Rule,
    pub init: String,
    pub tau: f32,
    pub normalize: Normalize,
    /// What the columns of a chain's own states stand for.
    #[serde(default = "states", skip_serializing_if = "is_states")]
    pub sources: Sources,
    /// A row reads its nearest state and every so many before it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub dilation: usize,
    /// Every so many rows have a route.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub period: usize,
    /// A row reads every so many states, from the first on, and its nearest.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub summaries: usize,
    pub chains: Vec<ChainRecord>,
}

fn states() -> Sources {
    Sources::States
}

fn is_states(s: &Sources) -> bool {
    *s == Sources::States
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// The router of one chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ChainRecord {
    pub id: usize,
    #[serde(rename = "K")]
    pub blocks: usize,
    pub adds_per_block: usize,
    /// Initializer of the logits (or weights), [K, S + K]; under `attention` of the queries, [K, features].
    pub logits: String,
    /// Axis of the features under `attention`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub axis: usize,
    /// Number of features under `attention`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub features: usize,
    /// Initializer of the gate, K elements.
    pub gate: Option<String>,
    /// Earlier chains' states that all rows read, S of them; their columns come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceRecord>,
    /// Values of the states h_0 … h_K.
    pub states: Vec<String>,
    /// Under form `input` with deltas: the values of the own columns from the second on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<String>,
    /// Row (0-based) and value of each route.
    pub rows: Vec<(usize, String)>,
}

/// An earlier chain's state among the sources of a [`ChainRecord`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Value of the state.
    pub state: String,
    /// Value of the state brought to the chain's shape, which the rows read.
    pub value: String,
}

impl ChainRecord {
    /// Number of columns, S + K.
    pub fn width(&self) -> usize {
        self.sources.len() + self.blocks
    }

    /// Number of columns that a row (0-based) reads.
    pub fn reads(&self, row: usize) -> usize {
        self.sources.len() + row + 1
    }
}

impl RouterRecord {
    /// Which rows have a route, and which states they read.
    pub fn sparsity(&self) -> Sparsity {
        Sparsity { dilation: self.dilation, period: self.period, summaries: self.summaries }
    }

    /// The record of a graph's routers, which were all built by the same options.
    pub fn of(g: &Graph) -> Option<RouterRecord> {
        let first = g.routers.values().next()?;
        let name = |v: ValueId| g.name(v).to_string();
        let chain = |(id, r): (&RouterId, &RouterSpec)| ChainRecord {
            id: id.0,
            blocks: r.blocks(),
            adds_per_block: r.adds_per_block,
            logits: name(r.logits),
            axis: r.axis,
            features: r.features,
            gate: r.gate.map(name),
            sources: r.sources.iter().map(|s| SourceRecord { state: name(s.state), value: name(s.value) }).collect(),
            states: r.states.iter().map(|v| name(*v)).collect(),
            deltas: r.deltas.iter().map(|v| name(*v)).collect(),
            rows: r.rows.iter().map(|(row, v)| (*row, name(*v))).collect(),
        };
        Some(RouterRecord {
            form: first.form,
            granularity: first.granularity.clone(),
            scope: first.scope,
            parametrization: first.rule,
            init: first.init.clone(),
            tau: first.tau,
            normalize: first.normalize,
            sources: first.taken,
            dilation: first.sparsity.dilation,
            period: first.sparsity.period,
            summaries: first.sparsity.summaries,
            chains: g.routers.iter().map(chain).collect(),
        })
    }

    /// The routers it describes, as objects of a graph.
    ///
    /// # Errors
    /// The first name that no value of the graph has, or the first row that no block has.
    pub fn routers(&self, g: &Graph) -> Result<IndexMap<RouterId, RouterSpec>, Absent> {
        let find = |name: &String| g.find(name).ok_or_else(|| Absent(name.clone()));
        let spec = |c: &ChainRecord| -> Result<_, Absent> {
            if c.deltas.len() != if self.sources.are_values(self.form) { c.states.len().saturating_sub(2) } else { 0 } {
                return Err(Absent(format!("the deltas of chain {}", c.id)));
            }
            let source = |s: &SourceRecord| Ok(Source { state: find(&s.state)?, value: find(&s.value)? });
            let row = |(row, v): &(usize, String)| {
                if row + 1 < c.states.len() { Ok((*row, find(v)?)) } else { Err(Absent(format!("row {row}"))) }
            };
            let spec = RouterSpec {
                form: self.form,
                rule: self.parametrization,
                normalize: self.normalize,
                tau: self.tau,
                taken: self.sources,
                sparsity: self.sparsity(),
                axis: c.axis,
                features: c.features,
                scope: self.scope,
                granularity: self.granularity.clone(),
                init: self.init.clone(),
                adds_per_block: c.adds_per_block,
                logits: find(&c.logits)?,
                gate: c.gate.as_ref().map(find).transpose()?,
                sources: c.sources.iter().map(source).collect::<Result<_, _>>()?,
                states: c.states.iter().map(find).collect::<Result<_, _>>()?,
                deltas: c.deltas.iter().map(find).collect::<Result<_, _>>()?,
                rows: c.rows.iter().map(row).collect::<Result<_, _>>()?,
            };
            Ok((RouterId(c.id), spec))
        };
        self.chains.iter().map(spec).collect()
    }
}

//! The routers' weights as numbers, whoever holds the logits: a model, a checkpoint or a running session.

use ancre_passes::contract::{ChainRecord, Record, RouterRecord};
use ancre_passes::ir::{Graph, Rule, Sources};
use ancre_passes::transform::route::reference_weights;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write;
use std::slice;

/// Chains of at most so many columns are printed whole; of a longer one the strongest shortcuts are.
const PRINTED: usize = 12;
/// Shortcuts that are printed of a longer chain.
const STRONGEST: usize = 5;

/// A weight of the router that is not on the original skip.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shortcut {
    /// The chain.
    pub chain: usize,
    /// The block that reads, from 1.
    pub block: usize,
    /// The state it reads, as [`Weights::columns`] names it.
    pub source: String,
    /// Its weight.
    pub weight: f32,
    /// Weight that the original skip into the block is left with; `None` where that is none of the columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip: Option<f32>,
}

impl Shortcut {
    /// In a line.
    pub fn text(&self) -> String {
        let Shortcut { block, source, weight, .. } = self;
        let skip = self.skip.map_or(String::new(), |skip| format!("  (the skip into it: {skip:+.3})"));
        format!("{source} -> block {block}  weight {weight:+.3}{skip}")
    }
}

/// The weights of one chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// The chain.
    pub id: usize,
    /// The states that rows read, in order: `h2` is the chain's own state, `0:h1` that of an earlier chain.
    pub columns: Vec<String>,
    /// A row for each block. A row is as long as the states it reads; the last one is the original skip, unless the columns are deltas.
    pub rows: Vec<Vec<f32>>,
    /// Do the chain's own columns from the second on stand for what blocks added?
    pub of_deltas: bool,
}

impl Weights {
    /// `{"id", "K", "columns", "weights"}`.
    pub fn json(&self) -> Value {
        json!({"id": self.id, "K": self.rows.len(), "columns": self.columns, "weights": self.rows})
    }

    /// Every weight with its row and column.
    pub fn all(&self) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
        self.rows.iter().enumerate().flat_map(|(r, row)| row.iter().enumerate().map(move |(c, w)| (r, c, *w)))
    }

    /// Is this weight on the original skip?
    pub fn is_skip(&self, row: usize, column: usize) -> bool {
        column + 1 == self.rows[row].len() && !(self.of_deltas && column > self.foreign())
    }

    /// The rows' states before the first of the chain's own: those of earlier chains.
    pub fn foreign(&self) -> usize {
        self.columns.len() - self.rows.len()
    }

    /// The matrix for people; of a long chain the strongest shortcuts.
    pub fn text(&self) -> String {
        let mut out = String::new();
        if self.columns.len() > PRINTED {
            let _ = writeln!(out, "chain {}: K = {}; its strongest shortcuts:", self.id, self.rows.len());
            shortcuts(slice::from_ref(self)).iter().take(STRONGEST).for_each(|s| _ = writeln!(out, "  {}", s.text()));
            return out;
        }
        let width = self.columns.iter().map(|c| c.len()).max().unwrap_or(0).max(6) + 2;
        let _ = write!(out, "{:<10}", format!("chain {}", self.id));
        self.columns.iter().for_each(|c| _ = write!(out, "{c:>width$}"));
        for (i, row) in self.rows.iter().enumerate() {
            let _ = write!(out, "\n{:<10}", format!("block {}", i + 1));
            row.iter().for_each(|w| _ = write!(out, "{w:>+width$.3}"));
        }
        out.push('\n');
        out
    }
}

/// The shortcuts of chains, the strongest first.
pub fn shortcuts(all: &[Weights]) -> Vec<Shortcut> {
    let of = |w: &Weights, row: usize, column: usize, weight: f32| Shortcut {
        chain: w.id,
        block: row + 1,
        source: w.columns[column].clone(),
        weight,
        skip: w.rows[row].last().copied().filter(|_| w.is_skip(row, w.rows[row].len() - 1)),
    };
    let cells = |w| Weights::all(w).filter(|(r, c, _)| !w.is_skip(*r, *c)).map(move |(r, c, weight)| of(w, r, c, weight));
    let mut found: Vec<Shortcut> = all.iter().flat_map(cells).collect();
    found.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
    found
}

/// The router's options in words.
pub fn options(r: &RouterRecord) -> String {
    let mut words = vec![r.form.name(), &r.granularity, r.scope.name(), r.parametrization.name(), r.normalize.name()];
    words.extend((r.sources == Sources::Deltas).then_some("of deltas"));
    words.join(", ")
}

/// The JSON of several chains.
pub fn json_of(all: &[Weights]) -> Value {
    all.iter().map(Weights::json).collect()
}

/// The weights of all chains; `read` gives a tensor of logits or gates by its name.
///
/// # Errors
/// The name that `read` does not know, or what is wrong with its tensor.
pub fn weights(router: &RouterRecord, read: &dyn Fn(&str) -> Option<Vec<f32>>) -> Result<Vec<Weights>, String> {
    if router.parametrization == Rule::Attention {
        return Err("the weights of attention depend on the input: they are no numbers of the file; `ancre-rewrite topology MODEL.ancre.onnx --input DATA.npz` shows their means over data".into());
    }
    let get = |name: &String, len: usize| match read(name) {
        Some(values) if values.len() == len => Ok(values),
        Some(values) => Err(format!("the router's `{name}` has {} elements, {len} were expected", values.len())),
        None => Err(format!("the router's `{name}` is missing")),
    };
    let of = |chain: &ChainRecord| {
        let (blocks, width) = (chain.blocks, chain.width());
        let logits = get(&chain.logits, blocks * width)?;
        let gate = chain.gate.as_ref().map(|name| get(name, blocks)).transpose()?;
        let all = reference_weights(&logits, gate.as_deref(), blocks, router);
        let row = |r: usize| all[r * width..r * width + chain.reads(r)].iter().map(|w| *w as f32).collect();
        Ok(Weights {
            id: chain.id,
            columns: columns(router, chain),
            rows: (0..blocks).map(row).collect(),
            of_deltas: of_deltas(router),
        })
    };
    router.chains.iter().map(of).collect()
}

/// Are the weights that are shown those of deltas? Fixed weights of differences of states are shown for the states.
pub(super) fn of_deltas(router: &RouterRecord) -> bool {
    router.sources.are_values(router.form) || router.sources == Sources::Deltas && router.parametrization == Rule::Attention
}

/// The names of what a chain's rows sum up: states, or `d1` for what block 1 added.
pub(super) fn columns(router: &RouterRecord, chain: &ChainRecord) -> Vec<String> {
    let foreign = chain.sources.iter().map(|s| state_name(router, &s.state));
    let own = |i: usize| format!("{}{i}", if i > 0 && of_deltas(router) { "d" } else { "h" });
    foreign.chain((0..chain.blocks).map(own)).collect()
}

/// An earlier chain's state: `0:h1`, or the value's name where no chain has it.
fn state_name(router: &RouterRecord, value: &str) -> String {
    let place = |c: &ChainRecord| Some(format!("{}:h{}", c.id, c.states.iter().position(|s| s == value)?));
    router.chains.iter().find_map(place).unwrap_or_else(|| value.to_string())
}

/// The router of a forward graph with the weights in its file; `None` where the graph is not routed.
///
/// # Errors
/// Metadata that cannot be read, or that names what the graph does not hold.
pub fn of_graph(g: &Graph) -> Result<Option<(RouterRecord, Vec<Weights>)>, String> {
    let Some(router) = RouterRecord::read(g).map_err(|e| e.to_string())? else { return Ok(None) };
    let all = weights(&router, &|name| g.initializer(g.find(name)?)?.to_f32().ok().map(|v| v.to_vec()))?;
    Ok(Some((router, all)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::ir::{Form, Normalize, Scope};

    fn router_of(chains: Vec<ChainRecord>) -> RouterRecord {
        RouterRecord {
            form: Form::Reassign,
            granularity: "add".into(),
            scope: Scope::Network,
            parametrization: Rule::Free,
            init: "uniform".into(),
            tau: 1.0,
            normalize: Normalize::Incoming,
            sources: Sources::States,
            dilation: 1,
            period: 1,
            summaries: 1,
            chains,
        }
    }

    #[test]
    fn the_strongest_shortcut_comes_first() {
        let columns = ["h0", "h1", "h2"].map(String::from).to_vec();
        let all = shortcuts(&[Weights {
            id: 4,
            columns,
            rows: vec![vec![1.0], vec![0.25, 0.75], vec![0.1, -0.5, 0.4]],
            of_deltas: false,
        }]);
        let seen: Vec<_> = all.iter().map(|s| (s.block, s.source.as_str(), s.weight, s.skip)).collect();
        assert_eq!(seen, [(3, "h1", -0.5, Some(0.4)), (2, "h0", 0.25, Some(0.75)), (3, "h0", 0.1, Some(0.4))]);
        assert_eq!((all[0].chain, all[0].text()), (4, "h1 -> block 3  weight -0.500  (the skip into it: +0.400)".into()));
    }

    #[test]
    fn columns_of_deltas_have_their_names() {
        let chain = ChainRecord {
            id: 0,
            blocks: 3,
            adds_per_block: 1,
            logits: "l".into(),
            axis: 0,
            features: 0,
            gate: None,
            sources: vec![],
            states: (0..4).map(|i| format!("s{i}")).collect(),
            deltas: vec!["a".into(), "b".into()],
            rows: vec![],
        };
        let mut router = router_of(vec![chain.clone()]);
        assert_eq!(columns(&router, &chain), ["h0", "h1", "h2"]);
        (router.form, router.sources) = (Form::Input, Sources::Deltas);
        assert_eq!(columns(&router, &chain), ["h0", "d1", "d2"]);
        // None of them is the skip.
        let all = Weights {
            id: 0,
            columns: columns(&router, &chain),
            rows: vec![vec![1.0], vec![0.5, 0.5], vec![0.2, 0.4, 0.4]],
            of_deltas: true,
        };
        assert!(all.is_skip(0, 0) && !all.is_skip(1, 1) && !all.is_skip(2, 2));
        assert_eq!(shortcuts(&[all])[0].text(), "h0 -> block 2  weight +0.500");
    }

    #[test]
    fn rows_are_as_long_as_the_states_they_read() {
        let chain = |id: usize, sources: &[&str]| ChainRecord {
            id,
            blocks: 2,
            adds_per_block: 1,
            logits: format!("l{id}"),
            axis: 0,
            features: 0,
            gate: None,
            sources: sources
                .iter()
                .map(|s| ancre_passes::contract::SourceRecord { state: s.to_string(), value: s.to_string() })
                .collect(),
            states: (0..3).map(|i| format!("s{id}{i}")).collect(),
            deltas: vec![],
            rows: vec![],
        };
        let router = router_of(vec![chain(0, &[]), chain(3, &["s01", "lost"])]);
        let read = |name: &str| match name {
            "l0" => Some(vec![1.0, 9.0, 0.25, -0.75]),
            "l3" => Some(vec![0.5, 0.125, 1.0, 9.0, 0.0, 1.0, 2.0, 3.0]),
            _ => None,
        };
        let all = weights(&router, &read).unwrap();
        assert_eq!(all[0].rows, [vec![1.0], vec![0.25, -0.75]]);
        assert_eq!(all[1].rows, [vec![0.5, 0.125, 1.0], vec![0.0, 1.0, 2.0, 3.0]]);
        assert_eq!((all[1].columns.join(" "), all[1].foreign()), ("0:h1 lost h0 h1".into(), 2));
        assert!(all[0].text().contains("block 2     +0.250  -0.750"), "{}", all[0].text());
        let e = weights(&router, &|name| read(name).filter(|_| name == "l0")).unwrap_err();
        assert_eq!(e, "the router's `l3` is missing");
        assert!(weights(&router, &|_| Some(vec![0.0])).unwrap_err().contains("1 elements, 4 were expected"));
    }
}

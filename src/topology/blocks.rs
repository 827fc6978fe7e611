//! What the blocks of a routed network are, in a word: attention, MLP, convolution.

use ancre_passes::contract::{ChainRecord, Record, RouterRecord};
use ancre_passes::ir::{Graph, NodeId, ValueId};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What a picture of a network needs besides its weights. Checkpoints carry it, so that they can be drawn by themselves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Network {
    /// The model's file name.
    pub model: String,
    /// Its routers.
    pub router: RouterRecord,
    /// Its chains, in the order of the routers'.
    pub chains: Vec<Blocks>,
}

/// The blocks of a chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Blocks {
    /// Type of the states.
    pub state: String,
    /// What each block is.
    pub kinds: Vec<String>,
    /// The operators of each block, in execution order.
    pub operators: Vec<String>,
}

impl Network {
    /// The routed network of a graph; `None` where it is not routed.
    ///
    /// # Errors
    /// Metadata that cannot be read.
    pub fn of(g: &Graph, model: String) -> Result<Option<Network>, String> {
        let Some(router) = RouterRecord::read(g).map_err(|e| e.to_string())? else { return Ok(None) };
        let order = g.topological_order();
        let chains = router.chains.iter().map(|c| Blocks::of(g, c, &order)).collect();
        Ok(Some(Network { model, router, chains }))
    }
}

impl Blocks {
    fn of(g: &Graph, chain: &ChainRecord, order: &[NodeId]) -> Blocks {
        let find = |name: &String| g.find(name);
        let states: Vec<Option<ValueId>> = chain.states.iter().map(find).collect();
        let sources = chain.sources.iter().map(|s| &s.value);
        let ends = chain.states.iter().chain(sources).chain(chain.rows.iter().map(|(_, v)| v));
        let ends: HashSet<ValueId> = ends.filter_map(find).collect();
        let state = states.first().copied().flatten().and_then(|v| g.tensor_type(v)).map_or("?".into(), |t| t.to_string());
        let (mut kinds, mut operators) = (Vec::new(), Vec::new());
        for target in states.iter().skip(1) {
            let nodes = target.map_or(Vec::new(), |v| branch(g, v, &ends, order));
            kinds.push(kind(g, &nodes));
            let names: Vec<&str> = nodes.iter().filter_map(|n| g.op(*n)).map(|op| op.name.as_str()).collect();
            operators.push(names.join("·"));
        }
        Blocks { state, kinds, operators }
    }
}

/// The nodes between the states and `target`, a state, in execution order.
fn branch(g: &Graph, target: ValueId, ends: &HashSet<ValueId>, order: &[NodeId]) -> Vec<NodeId> {
    let mut behind = HashSet::from([target.node]);
    let mut open = vec![target.node];
    while let Some(n) = open.pop() {
        for v in g.reads(n).filter(|v| !ends.contains(v)) {
            if g.op(v.node).is_some() && behind.insert(v.node) {
                open.push(v.node);
            }
        }
    }
    // What no state reaches is no part of the branch: conditions, masks and positions are computed elsewhere.
    let mut reached: HashSet<NodeId> = HashSet::new();
    for n in order.iter().filter(|n| behind.contains(n)) {
        if g.reads(*n).any(|v| ends.contains(&v) || reached.contains(&v.node)) {
            reached.insert(*n);
        }
    }
    order.iter().filter(|n| reached.contains(n)).copied().collect()
}

const ACTIVATIONS: [&str; 12] =
    ["Gelu", "Erf", "Relu", "Tanh", "Sigmoid", "Elu", "Selu", "LeakyRelu", "HardSwish", "Swish", "Mish", "Silu"];

fn kind(g: &Graph, nodes: &[NodeId]) -> String {
    let names: Vec<&str> = nodes.iter().filter_map(|n| g.op(*n)).map(|op| op.name.as_str()).collect();
    let has = |part: &str| names.iter().any(|n| n.contains(part));
    let product = has("MatMul") || has("Gemm");
    let labelled = nodes.iter().any(|n| g.site(*n).name.to_ascii_lowercase().contains("attn"));
    let attends = has("Attention") || (product || has("Einsum")) && (has("Softmax") || labelled);
    let acts = names.iter().any(|n| ACTIVATIONS.iter().any(|a| n.ends_with(a) || *n == format!("Fast{a}")));
    let word = match () {
        () if has("LSTM") || has("GRU") || has("RNN") => "recurrent",
        () if attends && acts && product => "attention+MLP",
        () if attends => "attention",
        () if has("Conv") => "convolution",
        () if product && acts => "MLP",
        () if product => "linear",
        () => return names.first().map_or("nothing".into(), |n| n.to_string()),
    };
    word.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::text::parse;

    #[test]
    fn blocks_are_named_by_what_they_compute() {
        let g = parse(
            "g (float[4, 4] h0, float[4, 4] other) => (float[4, 4] h4) <float[4, 4] w = {…}> {
                a = MatMul (h0, w) s = Softmax (a) m = MatMul (s, h0) h1 = Add (h0, m)
                b = MatMul (h1, w) r = Relu (b) c = MatMul (r, w) h2 = Add (h1, c)
                o = Softmax (other) d = MatMul (h2, w) e = Mul (d, o) h3 = Add (h2, e)
                x = Neg (h3) h4 = Add (h3, x) }",
        )
        .unwrap();
        let chain = ChainRecord {
            id: 0,
            blocks: 4,
            adds_per_block: 1,
            axis: 0,
            features: 0,
            logits: "l".into(),
            gate: None,
            sources: vec![],
            states: (0..5).map(|i| format!("h{i}")).collect(),
            deltas: vec![],
            rows: vec![],
        };
        let blocks = Blocks::of(&g, &chain, &g.topological_order());
        // The softmax over what no state reaches makes no attention of the third block.
        assert_eq!(blocks.kinds, ["attention", "MLP", "linear", "Neg"]);
        assert_eq!(blocks.operators[2], "MatMul·Mul·Add");
    }
}

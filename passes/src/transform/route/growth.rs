//! How much states grow where routes stand beside the skips (`--form augment`), and whether a normalisation takes that back.

use super::{Form, RouterSpec, Rule, reference_weights};
use crate::ir::{Graph, NodeId};
use crate::ops::Class;
use std::collections::HashSet;

/// A state this many times as large is worth a word.
const LARGE: f64 = 100.0;

/// How many times as large the routes make a state that reaches an output without being normalised, at the weights that the routers start with and with
/// branches left out: h_k = h_{k−1} + Σ_i w_{k,i} h_i. `None` where that is little.
pub fn unnormalised_growth(g: &Graph) -> Option<f64> {
    let outputs: HashSet<NodeId> = g.outputs().iter().map(|o| o.value.node).collect();
    // The factor that a state at the end of a chain still meets, and where each such chain begins; the last chain first.
    let mut ahead: Vec<(NodeId, f64)> = Vec::new();
    for r in g.routers.values().rev().filter(|r| r.form == Form::Augment) {
        let (Some(first), Some(last)) = (r.states.first(), r.states.last()) else { continue };
        let times = of_chain(g, r);
        let on = plain(g, last.node);
        let later = ahead.iter().filter(|(begin, _)| on.contains(begin)).map(|(_, times)| *times).fold(0.0, f64::max);
        let rest = if later > 0.0 { later } else { on.iter().any(|n| outputs.contains(n)) as u8 as f64 };
        ahead.push((first.node, times * rest));
    }
    let most = ahead.into_iter().map(|(_, times)| times).fold(0.0, f64::max);
    (most >= LARGE).then_some(most)
}

/// The nodes that a value reaches without being normalised on the way, itself among them.
fn plain(g: &Graph, from: NodeId) -> HashSet<NodeId> {
    let (mut seen, mut next) = (HashSet::from([from]), vec![from]);
    while let Some(node) = next.pop() {
        for reader in g.results(node).flat_map(|v| g.uses(v)).map(|(n, _)| n) {
            if !normalises(g, reader) && seen.insert(reader) {
                next.push(reader);
            }
        }
    }
    seen
}

/// The last state of a chain whose first has the size 1, and so have other chains' states.
fn of_chain(g: &Graph, r: &RouterSpec) -> f64 {
    let (k, extra) = (r.blocks(), r.sources.len());
    let first = |v| g.initializer(v).and_then(|t| t.to_f32().ok());
    let learned = (r.rule != Rule::Attention).then(|| first(r.logits)).flatten();
    let gate = r.gate.and_then(first);
    let weights = learned.map(|logits| reference_weights(&logits, gate.as_deref(), k, r));
    let width = extra + k;
    let mut states = vec![1.0; extra + 1];
    for row in 0..k {
        let routed = row == 0 || r.rows.iter().any(|(of, _)| *of == row);
        let read = &states[..];
        let sum: f64 = match &weights {
            _ if !routed => 0.0,
            Some(w) => w[row * width..].iter().zip(read).map(|(w, h)| w * h).sum(),
            // Queries start at zero, which weighs all sources alike.
            None => read.iter().sum::<f64>() / read.len() as f64,
        };
        // What a block gives that normalises after its add has the size 1.
        let block = if routed { g.operand(r.states[row + 1].node, 0) } else { Some(r.states[row + 1]) };
        let is_carried = block.is_some_and(|v| plain(g, r.states[row].node).contains(&v.node));
        states.push(if is_carried { states.last().copied().unwrap_or(1.0) } else { 1.0 } + sum);
    }
    states.last().map_or(1.0, |h: &f64| h.abs())
}

/// Is it a normalisation, or the quotient at the end of one that is written out?
fn normalises(g: &Graph, node: NodeId) -> bool {
    let Some(op) = g.op(node) else { return false };
    if Class::of(op) == Class::Norm || op.name.contains("LayerNormalization") {
        return true;
    }
    matches!(op.name.as_str(), "Div" | "Mul") && g.reads(node).any(|v| is_deviation(g, v.node))
}

/// Is it a root or a norm of something, perhaps inverted, shifted or laid out otherwise?
fn is_deviation(g: &Graph, mut node: NodeId) -> bool {
    const ON: [&str; 7] = ["Reciprocal", "Add", "Max", "Clip", "Expand", "Unsqueeze", "Reshape"];
    for _ in 0..5 {
        let Some(op) = g.op(node) else { return false };
        match op.name.as_str() {
            "Sqrt" | "ReduceL2" => return true,
            name if ON.contains(&name) => {
                let Some(before) = g.operand(node, 0) else { return false };
                node = before.node;
            }
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::{Init, RouteOptions, route_skips};
    use super::*;
    use crate::analysis::residual::find_residuals;
    use crate::text::parse;

    /// Blocks h ← h + h w and what stands between them, routed.
    fn growth(body: &str, change: impl Fn(&mut RouteOptions)) -> Option<f64> {
        let text = format!(
            "g (float[2, 8] x) => (float[2, 8] y) <float[8, 8] w = {{…}}, float[8] s = {{…}}> {{ h0 = Sigmoid (x) {body} }}"
        );
        let mut g = parse(&text).unwrap();
        let mut options = RouteOptions::default();
        (options.form, options.rule) = (Form::Augment, Rule::Softmax);
        change(&mut options);
        let chains = find_residuals(&g).chains;
        route_skips(&mut g, &chains, &options).unwrap();
        assert!(!g.routers.is_empty(), "{text}");
        unnormalised_growth(&g)
    }

    fn blocks(from: usize, to: usize) -> String {
        (from..to).map(|k| format!("f{k} = MatMul (h{k}, w) h{} = Add (h{k}, f{k}) ", k + 1)).collect()
    }

    #[test]
    fn states_that_grow_and_are_not_normalised_are_told() {
        let deep = blocks(0, 16);
        let plain = format!("{deep} y = Neg (h16)");
        let uniform = growth(&plain, |_| ()).unwrap();
        assert!((290.0..310.0).contains(&uniform), "{uniform}");
        assert_eq!(growth(&format!("{} y = Neg (h4)", blocks(0, 4)), |_| ()), None);
        assert_eq!(growth(&plain, |o| o.form = Form::Reassign), None);
        // Each block's own route is its nearest state.
        for one_hot in [Rule::Gated, Rule::Free] {
            assert_eq!(growth(&plain, |o| (o.rule, o.init) = (one_hot, Init::Identity)), Some(65536.0), "{one_hot:?}");
        }
        let identity = growth(&plain, |o| o.init = Init::Identity).unwrap();
        assert!((identity - 65536.0).abs() < 1.0, "{identity}");
        let attention = growth(&plain, |o| o.rule = Rule::Attention).unwrap();
        assert!((attention - uniform).abs() < 1e-9, "{attention}");
    }

    #[test]
    fn a_normalisation_on_the_way_takes_growth_back() {
        let deep = blocks(0, 16);
        for norm in
            ["y = LayerNormalization (h16, s)", "q = Mul (h16, h16) m = ReduceMean (q) r = Sqrt (m) y = Div (h16, r)"]
        {
            assert_eq!(growth(&format!("{deep} {norm}"), |_| ()), None, "{norm}");
        }
        // Two chains of eight: together 36 times 36, and 36 where the state between them is normalised.
        let two = |between: &str| format!("{} {between} {} y = Neg (h17)", blocks(0, 8), blocks(9, 17));
        let both = growth(&two("h9 = MatMul (h8, w)"), |_| ()).unwrap();
        assert!((1200.0..1400.0).contains(&both), "{both}");
        assert_eq!(growth(&two("n = LayerNormalization (h8, s) h9 = MatMul (n, w)"), |_| ()), None);
        // A norm after every add.
        let post: String = (0..16)
            .map(|k| {
                format!(
                    "t{k} = MatMul (h{k}, w) f{k} = Tanh (t{k}) u{k} = Add (h{k}, f{k}) h{} = LayerNormalization (u{k}, s) ",
                    k + 1
                )
            })
            .collect();
        assert_eq!(growth(&format!("{post} y = Neg (h16)"), |_| ()), None);
        // A norm at a branch's beginning leaves the state as it is.
        let pre: String = (0..16)
            .map(|k| format!("n{k} = LayerNormalization (h{k}, s) f{k} = MatMul (n{k}, w) h{} = Add (h{k}, f{k}) ", k + 1))
            .collect();
        assert!(growth(&format!("{pre} y = Neg (h16)"), |_| ()).is_some());
    }
}

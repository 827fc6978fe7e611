//! How much states grow where routes stand beside the skips (`--form augment`), and whether a normalisation takes that back.

use crate::ir::{Form, Graph, NodeId, RouterSpec, Rule};
use crate::ops::Class;

/// A state this many times as large is worth a word.
const LARGE: f64 = 100.0;

/// How many times as large the routes make the last state at equal weights: h_k = h_{k−1} + mean(h_0 … h_{k−1}) in each chain, branches left out. `None`
/// where that is little, or a normalisation stands between the last state and the outputs.
pub fn unnormalised_growth(g: &Graph) -> Option<f64> {
    let grows = |r: &&RouterSpec| r.form == Form::Augment && !matches!(r.rule, Rule::Free | Rule::Gated);
    let times: f64 = g.routers.values().filter(grows).map(|r| of_chain(r.blocks())).product();
    let last = g.routers.values().rfind(grows)?.states.last()?.node;
    let after = g.descendants([last]);
    (times >= LARGE && !after.into_iter().any(|n| n != last && normalises(g, n))).then_some(times)
}

/// After so many routed blocks.
fn of_chain(blocks: usize) -> f64 {
    let (mut state, mut sum) = (1.0, 1.0);
    for k in 0..blocks {
        state += sum / (k + 1) as f64;
        sum += state;
    }
    state
}

/// Is it a normalisation, or a part of one that is written out?
fn normalises(g: &Graph, node: NodeId) -> bool {
    g.op(node).is_some_and(|op| Class::of(op) == Class::Norm)
        || ["Sqrt", "ReduceL2", "ReduceSumSquare"].iter().any(|name| g.is_op(node, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::residual::find_residuals;
    use crate::text::parse;
    use crate::transform::route::{RouteOptions, route_skips};

    fn growth(blocks: usize, form: Form, head: &str) -> Option<f64> {
        let body: String =
            (0..blocks).map(|k| format!("f{k} = MatMul (h{k}, w)  h{} = Add (h{k}, f{k})  ", k + 1)).collect();
        let text = format!(
            "g (float[2, 8] x, float[8, 8] w) => (float[2, 8] y) {{ h0 = Sigmoid (x)  {body} {} }}",
            head.replace("LAST", &format!("h{blocks}"))
        );
        let mut g = parse(&text).unwrap();
        let mut options = RouteOptions::default();
        (options.form, options.rule) = (form, Rule::Softmax);
        let chains = find_residuals(&g).chains;
        route_skips(&mut g, &chains, &options).unwrap();
        assert!(!g.routers.is_empty());
        unnormalised_growth(&g)
    }

    #[test]
    fn states_that_grow_and_are_not_normalised_are_told() {
        let plain = "y = Neg (LAST)";
        let found = growth(16, Form::Augment, plain).unwrap();
        assert!((250.0..400.0).contains(&found), "{found}");
        assert_eq!(growth(4, Form::Augment, plain), None);
        assert_eq!(growth(16, Form::Reassign, plain), None);
        assert_eq!(
            growth(16, Form::Augment, "s = Mul (LAST, LAST) m = ReduceMean (s) r = Sqrt (m) y = Div (LAST, r)"),
            None
        );
    }
}

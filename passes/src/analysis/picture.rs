//! The residual chains before and after the rewrite as a picture: an SVG that needs nothing beside itself.

use super::residual::{Chain, ResidualStructure};
use crate::ir::Graph;
use std::fmt::Write;

/// Width of one block with the state after it, in pixels.
const STEP: i64 = 92;
/// Where the first state of a chain stands.
const LEFT: i64 = 64;
/// Distance of a chain's line of states from the panel's lower edge.
const BELOW: i64 = 46;
/// Blocks that are drawn of a chain; the rest is counted.
const MOST_BLOCKS: usize = 10;
/// Chains that are drawn; the rest is counted.
const MOST_CHAINS: usize = 6;
/// Colours of branches, skips and routes. They differ in lightness as well as in hue.
const COLOURS: [&str; 3] = ["#44546a", "#9a6a00", "#1769c4"];

/// Draws every chain twice: its cascaded skips, and the routes by which each block reads all earlier states.
pub fn svg(g: &Graph, s: &ResidualStructure, title: &str) -> String {
    let drawn: Vec<&Chain> = s.chains.iter().take(MOST_CHAINS).collect();
    let blocks = |c: &Chain| c.joins.len().min(MOST_BLOCKS);
    let widest = drawn.iter().map(|c| blocks(c)).max().unwrap_or(0) as i64;
    let width = (2 * LEFT + widest * STEP).max(560);
    let (mut body, mut top) = (String::new(), 62);
    for c in &drawn {
        let k = blocks(c);
        let more = if c.joins.len() > k { format!(", {k} of them drawn") } else { String::new() };
        let plural = if c.joins.len() == 1 { "block" } else { "blocks" };
        text(&mut body, 16, top, "start", "head", &format!("chain {}: {} {plural}{more}, {}", c.id, c.joins.len(), c.ty));
        top += 10;
        // An arc over one block is this high; one over more grows with their number.
        let rise = |span: i64| 26 + 15 * (span - 1);
        // A curve of this kind reaches three quarters of the way to its control points.
        let heights = [rise(1) * 3 / 4 + 26, rise(k as i64) * 3 / 4 + 26];
        let captions = [
            "before: each block adds to the state before it",
            "after: each block adds to a learned mix of all earlier states",
        ];
        for (routed, (height, caption)) in [false, true].into_iter().zip(heights.into_iter().zip(captions)) {
            text(&mut body, 16, top + 14, "start", "note", caption);
            let line = top + 12 + height;
            panel(&mut body, g, c, k, line, routed, &rise);
            top = line + BELOW;
        }
    }
    if s.chains.len() > drawn.len() {
        text(&mut body, 16, top, "start", "note", &format!("and {} more chains", s.chains.len() - drawn.len()));
        top += 24;
    }
    if s.chains.is_empty() {
        text(&mut body, 16, top, "start", "note", "no chain of residual blocks");
        top += 24;
    }
    let [branch, skip, route] = COLOURS;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {top}\" width=\"{width}\" height=\"{top}\" role=\"img\">\n\
         <title>{}</title>\n\
         <style>text{{font-family:Helvetica,Arial,sans-serif;fill:#222}}.title{{font-size:17px;font-weight:bold}}.head{{font-size:13px;font-weight:bold}}\
         .note{{font-size:12px;fill:#555}}.state{{font-size:11px}}.block{{font-size:10px}}\
         .b{{stroke:{branch};fill:none;stroke-width:1.3}}.s{{stroke:{skip};fill:none;stroke-width:2.6}}.r{{stroke:{route};fill:none}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"30\" class=\"title\">{}</text>\n{body}</svg>\n",
        escaped(title),
        escaped(title),
    )
}

/// One chain's states from left to right, its blocks between them, and its skips or routes as arcs above.
fn panel(out: &mut String, g: &Graph, c: &Chain, k: usize, line: i64, routed: bool, rise: &dyn Fn(i64) -> i64) {
    let at = |state: usize| LEFT + state as i64 * STEP;
    for block in 1..=k {
        let (from, to) = (at(block - 1), at(block));
        let middle = (from + to) / 2;
        let join = &c.joins[block - 1];
        let _ = writeln!(
            out,
            "<g><title>{}</title><path class=\"b\" d=\"M{} {line}H{}\"/><rect class=\"b\" x=\"{}\" y=\"{}\" width=\"44\" height=\"24\" rx=\"4\" fill=\"#eef1f5\" style=\"fill:#eef1f5\"/></g>",
            escaped(&format!("{}: {}", g.site(join.node).name, join.signature.join("·"))),
            from + 9,
            to - 9,
            middle - 22,
            line - 12,
        );
        text(out, middle, line + 4, "middle", "block", &format!("F{block}"));
        // A block with a single source has no route: the source's weight is 1.
        let sources = if routed { 0..block } else { block - 1..block };
        for state in sources {
            let span = (block - state) as i64;
            let top = line - rise(span);
            let (class, style) = match routed && span > 1 {
                false => ("s", String::new()),
                true => ("r", format!(" stroke-width=\"{:.1}\"", 1.0 + 0.8 / span as f64)),
            };
            let (a, b) = (at(state), to);
            let bend = (b - a) / 4;
            let _ = writeln!(
                out,
                "<path class=\"{class}\"{style} d=\"M{a} {} C{} {top} {} {top} {b} {}\"/>",
                line - 9,
                a + bend / 2,
                b - bend / 2,
                line - 9,
            );
        }
    }
    for state in 0..=k {
        let x = at(state);
        let name = g.name(c.states[state]);
        let _ = writeln!(
            out,
            "<g><title>{}</title><circle cx=\"{x}\" cy=\"{line}\" r=\"9\" fill=\"#fff\" stroke=\"#222\"/></g>",
            escaped(name)
        );
        if state > 0 {
            text(out, x, line + 4, "middle", "state", "+");
        }
        text(out, x, line + 26, "middle", "state", &format!("h{state}"));
    }
}

fn text(out: &mut String, x: i64, y: i64, anchor: &str, class: &str, what: &str) {
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" class=\"{class}\">{}</text>", escaped(what));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::residual::find_residuals;
    use crate::text::parse;

    #[test]
    fn every_block_reads_one_state_before_and_all_earlier_ones_after() {
        let g = parse(
            "net (float[n, 4] x) => (h3) <float[4, 4] w = {…}> {
               f1 = MatMul (x, w) h1 = Add (x, f1) f2 = MatMul (h1, w) h2 = Add (h1, f2) f3 = MatMul (h2, w) h3 = Add (h2, f3) }",
        )
        .unwrap();
        let picture = svg(&g, &find_residuals(&g), "a < b");
        let arcs = |class: &str| picture.matches(&format!("<path class=\"{class}\"")).count();
        // Three skips before; after, three nearest states and 0:2, 0:3, 1:3.
        assert_eq!((arcs("s"), arcs("r")), (6, 3));
        assert!(picture.contains("a &lt; b") && !picture.contains("a < b"));
    }
}

//! The page: what the numbers say, the curves, the differences with their intervals, and the table.

use super::report::Measure;
use super::{Comparison, runs};
use crate::error::Failure;
use crate::topology::chart::{Chart, Series};
use crate::topology::page::document;
use crate::topology::scene::{Anchor, Colour, GREY, INK, Part, Scene, Shape, Stroke, WHITE, escaped, fitted, text_width};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Width and height of a chart.
const CHART: (f64, f64) = (620.0, 300.0);
/// Points of a curve.
const POINTS: u64 = 120;

/// Looks of lines, which differ in more than colour.
const LOOKS: [(Colour, &[f64]); 8] = [
    ([0x22, 0x22, 0x22], &[]),
    ([0x17, 0x69, 0xc4], &[7.0, 3.0]),
    ([0x8a, 0x5a, 0x00], &[2.0, 2.5]),
    ([0xa8, 0x32, 0x24], &[9.0, 3.0, 2.0, 3.0]),
    ([0x2e, 0x7d, 0x32], &[14.0, 4.0]),
    ([0x6a, 0x3d, 0x9a], &[4.0, 4.0]),
    ([0x44, 0x54, 0x6a], &[9.0, 2.5, 2.0, 2.5, 2.0, 2.5]),
    ([0xb0, 0x3a, 0x86], &[1.5, 4.0]),
];

pub(super) fn html(c: &Comparison) -> Result<String, Failure> {
    let (title, lines) = c.lines();
    let mut body = String::new();
    let curves = curves(c)?;
    if !curves.is_empty() {
        body.push_str("<section>\n<h2>Curves, means over the seeds</h2>\n");
        curves.iter().for_each(|s| _ = write!(body, "<figure>\n{}</figure>\n", s.svg("Curves")));
        body.push_str("</section>\n");
    }
    let forests: Vec<Scene> = c.measures().iter().filter_map(|m| forest(c, m)).collect();
    if !forests.is_empty() {
        body.push_str("<section>\n<h2>Differences from cascaded, with their 95% intervals</h2>\n");
        forests.iter().for_each(|s| _ = write!(body, "<figure>\n{}</figure>\n", s.svg("Differences")));
        body.push_str("</section>\n");
    }
    body.push_str("<section>\n<h2>Figures</h2>\n");
    for (title, rows) in c.table() {
        let _ = write!(
            body,
            "<table>\n<tr><th>{}</th><th>mean ± deviation</th><th>difference (95% interval)</th></tr>\n",
            escaped(&title)
        );
        for row in rows {
            let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escaped(cell))).collect();
            let _ = writeln!(body, "<tr>{cells}</tr>");
        }
        body.push_str("</table>\n");
    }
    body.push_str("</section>\n");
    Ok(document(&title, &lines.iter().map(String::as_str).collect::<Vec<_>>(), &body))
}

/// Sums and counts by step.
type Means = BTreeMap<u64, (f64, u64)>;

fn add(means: &mut Means, at: u64, value: Option<f64>) {
    if let Some(v) = value.filter(|v| v.is_finite()) {
        let (sum, n) = means.entry(at).or_default();
        *sum += v;
        *n += 1;
    }
}

/// Training and validation loss over the steps.
fn curves(c: &Comparison) -> Result<Vec<Scene>, Failure> {
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for (i, variant) in c.variants.iter().enumerate() {
        let (colour, dashes) = LOOKS[i % LOOKS.len()];
        let (mut losses, mut held_back) = (Means::new(), Means::new());
        for run in c.seeds.iter().filter_map(|seed| c.finished(&variant.name, *seed)) {
            let bin = run.steps.div_ceil(POINTS).max(1);
            for step in runs::log(&runs::place(&c.out, &variant.name, run.seed))? {
                // A point stands in the middle of the steps that it is the mean of.
                add(&mut losses, (step.step - 1) / bin * bin + bin.div_ceil(2), step.loss);
                add(&mut held_back, step.step, step.val_loss);
            }
        }
        let series = |means: Means, marked: bool| Series {
            name: variant.name.clone(),
            points: means.into_iter().map(|(x, (sum, n))| (x as f64, sum / n as f64)).collect(),
            stroke: Stroke::new(colour, 1.6).dashed(dashes),
            marked,
        };
        training.push(series(losses, false));
        validation.push(series(held_back, true));
    }
    let chart = |(title, mut series): (&str, Vec<Series>)| {
        series.retain(|s| !s.points.is_empty());
        let chart = Chart { title: title.into(), x: "step", series, width: CHART.0, height: CHART.1 };
        (!chart.series.is_empty()).then(|| chart.draw())
    };
    Ok([("Training loss", training), ("Validation loss", validation)].into_iter().filter_map(chart).collect())
}

/// Differences of a measure as points with their intervals, around a line at zero.
fn forest(c: &Comparison, m: &Measure) -> Option<Scene> {
    const ROW: f64 = 26.0;
    let rows: Vec<_> = c.rows(m).into_iter().filter_map(|r| Some((r.variant, r.difference?))).collect();
    let ends = |d: &super::statistics::Difference| [d.low.unwrap_or(d.spread.mean), d.high.unwrap_or(d.spread.mean)];
    let (low, high) = rows.iter().flat_map(|(_, d)| ends(d)).fold((0f64, 0f64), |(l, h), v| (l.min(v), h.max(v)));
    if rows.is_empty() || high <= low {
        return None;
    }
    let mut scene = Scene { width: CHART.0, height: 62.0 + ROW * rows.len() as f64, ..Scene::default() };
    scene.text((18.0, 21.0), 13.0, Anchor::Start, INK, fitted(&m.title, 13.0, CHART.0 - 36.0));
    let names = rows.iter().map(|(name, _)| text_width(name, 11.0)).fold(0.0, f64::max).min(200.0);
    let (left, right) = (18.0 + names + 30.0, CHART.0 - 60.0);
    let x = |v: f64| left + (v - low) / (high - low) * (right - left);
    let bottom = 36.0 + ROW * rows.len() as f64;
    scene.line((x(0.0), 32.0), (x(0.0), bottom), Stroke::new(GREY, 1.0).dashed(&[3.0, 3.0]));
    let mut taken = f64::NEG_INFINITY;
    for v in [low, 0.0, high] {
        let (text, at) = (m.text(v), x(v));
        let half = text_width(&text, 11.0) / 2.0;
        if at - half > taken {
            scene.text((at, bottom + 14.0), 11.0, Anchor::Middle, GREY, text);
            taken = at + half + 4.0;
        }
    }
    for (i, (name, d)) in rows.iter().enumerate() {
        let y = 36.0 + ROW * (i as f64 + 0.5);
        scene.text((18.0, y + 4.0), 11.0, Anchor::Start, INK, fitted(name, 11.0, 200.0));
        let [from, to] = ends(d).map(x);
        scene.line((from, y), (to, y), Stroke::new(INK, 1.6));
        let caps = [from, to].into_iter().flat_map(|x| [Part::Move(x, y - 4.0), Part::Line(x, y + 4.0)]).collect();
        scene.add(Shape::Path(caps, Stroke::new(INK, 1.2)));
        let dot = Shape::Circle { x: x(d.spread.mean), y, radius: 3.6, fill: WHITE, stroke: Some(Stroke::new(INK, 1.6)) };
        scene.tell(dot, format!("{name}: {}", m.text(d.spread.mean)));
    }
    Some(scene)
}

//! The pictures of a routed network: its chains as arcs before and after, the weights as a heatmap, how they moved, and the
//! curves of the run. No picture needs its colours to be understood.

use super::blocks::Blocks;
use super::chart::{Chart, Series};
use super::course::{Course, Line};
use super::scene::{Anchor, Colour, GREY, INK, Part, Scene, Shape, Stroke, WHITE, fitted, text_width};
use super::weights::Weights;
use ancre_passes::ir::Form;

/// Left and right of every picture.
const MARGIN: f64 = 18.0;
/// Weights nearer to zero than this have no arc.
const FAINT: f32 = 0.005;
/// Blocks up to which arcs have their weights beside them, and blocks their names in them.
const LABELLED: usize = 6;
const NAMED: usize = 14;
/// Width and height of charts.
const CHART: (f64, f64) = (440.0, 230.0);
/// Weights whose way over the run is drawn.
const DRAWN: usize = 6;

const BRANCH: Colour = [0x44, 0x54, 0x6a];
const SKIP: Colour = [0x8a, 0x5a, 0x00];
const ROUTE: Colour = [0x17, 0x69, 0xc4];
const LESS: Colour = [0xa8, 0x32, 0x24];

/// What the pictures' signs mean, for all of them.
pub(super) const LEGEND: &str = "The wider an arc, the further its weight is from zero; a dashed arc has a negative weight. An arc \
    over one block is the original skip. The tables have a row for each block and a column for each state that it reads: the darker \
    a cell, the further its weight is from zero; a dashed frame marks a negative weight, a thick frame the original skip.";

/// A heading with notes under it, broken into lines of this width.
pub(super) fn heading(title: &str, notes: &[String], size: f64, width: f64) -> Scene {
    let width = width.max(text_width(title, size) + 2.0 * MARGIN);
    let mut scene = Scene { width, ..Scene::default() };
    let mut y = size + 8.0;
    scene.text((MARGIN, y), size, Anchor::Start, INK, title);
    for note in notes {
        let mut line = String::new();
        for word in note.split(' ') {
            if !line.is_empty() && text_width(&format!("{line} {word}"), 12.0) > width - 2.0 * MARGIN {
                y += 16.0;
                scene.text((MARGIN, y), 12.0, Anchor::Start, GREY, std::mem::take(&mut line));
            }
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
        y += 16.0;
        scene.text((MARGIN, y), 12.0, Anchor::Start, GREY, fitted(&line, 12.0, width - 2.0 * MARGIN));
    }
    scene.height = y + 8.0;
    scene
}

/// How the blocks and states of a chain stand in a row.
struct Row<'a> {
    blocks: &'a Blocks,
    weights: &'a Weights,
    step: f64,
}

impl Row<'_> {
    /// Is there room for names?
    fn wide(&self) -> bool {
        self.weights.columns.len() <= NAMED
    }

    fn radius(&self) -> f64 {
        if self.wide() { 9.0 } else { 4.0 }
    }

    /// Where a column's state stands; the last state of all is column K + S.
    fn at(&self, column: usize) -> f64 {
        MARGIN + 22.0 + column as f64 * self.step
    }

    /// Height of an arc over so many states.
    fn rise(&self, span: usize) -> f64 {
        let slope = 20.0_f64.min(240.0 / self.weights.columns.len() as f64);
        30.0 + slope * (span - 1) as f64
    }

    /// The states in a line, the blocks between them, and an arc for each weight: of the cascaded network, or as they are.
    fn draw(&self, caption: &str, after: bool, form: Form) -> Scene {
        let w = self.weights;
        let (foreign, count) = (w.foreign(), w.columns.len());
        let mut scene = heading(caption, &[], 13.0, self.at(count) + 40.0);
        // A cascade of augmented blocks has its own skips besides the routes, so its routes are all that is new.
        let kept = after && form == Form::Augment;
        let mut arcs: Vec<(usize, usize, f32)> = match after {
            true => w.all().filter(|(_, _, w)| w.abs() >= FAINT).collect(),
            false => w.all().filter(|(r, c, _)| w.is_skip(*r, *c)).map(|(r, c, _)| (r, c, 1.0)).collect(),
        };
        // The strongest lie on top.
        arcs.sort_by(|a, b| a.2.abs().total_cmp(&b.2.abs()));
        let span = |row: usize, column: usize| foreign + row + 1 - column;
        let highest = arcs.iter().map(|(r, c, _)| span(*r, *c)).max().unwrap_or(1);
        // A curve of this kind reaches three quarters of the way to its control points.
        let line = scene.height + self.rise(highest) * 0.75 + 24.0 + if kept { 16.0 } else { 0.0 };
        let most = arcs.iter().map(|(_, _, w)| w.abs()).fold(1.0, f32::max);
        let mut labels = Vec::new();
        for (row, column, weight) in arcs {
            let (a, b) = (self.at(column), self.at(foreign + row + 1));
            let top = line - self.rise(span(row, column));
            let bend = (b - a) / 8.0;
            let foot = line - self.radius();
            let curve = [a + bend, top, b - bend, top, b, foot];
            let skip = w.is_skip(row, column) && !kept;
            let (widest, faintest) = if self.wide() { (5.0, 0.6) } else { (3.0, 0.3) };
            let part = f64::from(weight.abs() / most);
            let stroke =
                Stroke::new(faded(if skip { SKIP } else { ROUTE }, faintest + (1.0 - faintest) * part), 0.5 + widest * part);
            let stroke = if weight < 0.0 { stroke.dashed(&[5.0, 4.0]) } else { stroke };
            let told = format!("{} in block {}: {weight:.6}", w.columns[column], row + 1);
            scene.tell(Shape::Path(vec![Part::Move(a, foot), Part::Curve(curve)], stroke), told);
            if after && w.rows.len() <= LABELLED && count <= NAMED {
                labels.push(((a + b) / 2.0, foot + (top - foot) * 0.75, short(weight, false)));
            }
        }
        if kept {
            for row in 0..w.rows.len() {
                let (a, b) = (self.at(foreign + row), self.at(foreign + row + 1));
                let curve = [a + 8.0, line + 24.0, b - 8.0, line + 24.0, b, line + self.radius()];
                let parts = vec![Part::Move(a, line + self.radius()), Part::Curve(curve)];
                scene.tell(Shape::Path(parts, Stroke::new(SKIP, 2.0)), "the block's own skip, which stays".into());
            }
        }
        for (x, y, text) in labels {
            let width = text_width(&text, 10.0) + 6.0;
            let (x0, y0) = (x - width / 2.0, y - 6.5);
            scene.add(Shape::Rect { x: x0, y: y0, width, height: 13.0, fill: WHITE, stroke: None });
            scene.text((x, y + 3.5), 10.0, Anchor::Middle, INK, text);
        }
        self.states(&mut scene, line);
        scene.height = line + if kept { 52.0 } else { 44.0 };
        scene
    }

    fn states(&self, scene: &mut Scene, line: f64) {
        let w = self.weights;
        let (foreign, wide, radius) = (w.foreign(), self.wide(), self.radius());
        for row in 0..w.rows.len() {
            let (from, to) = (self.at(foreign + row), self.at(foreign + row + 1));
            scene.line((from + radius, line), (to - radius, line), Stroke::new(BRANCH, 1.2));
            let width = (to - from - 2.0 * radius - 8.0).max(8.0);
            let kind = self.blocks.kinds.get(row).map_or("?", String::as_str);
            let told = format!("block {}: {kind} ({})", row + 1, self.blocks.operators.get(row).map_or("", String::as_str));
            let (height, x) = (if wide { 24.0 } else { 14.0 }, (from + to) / 2.0);
            let (x0, y0, fill) = (x - width / 2.0, line - height / 2.0, [0xee, 0xf1, 0xf5]);
            let stroke = Some(Stroke::new(BRANCH, 1.0));
            scene.tell(Shape::Rect { x: x0, y: y0, width, height, fill, stroke }, told);
            if wide {
                let size = (width / text_width(kind, 1.0)).clamp(8.0, 10.0);
                scene.text((x, line + 3.5), size, Anchor::Middle, INK, fitted(kind, size, width));
            } else {
                scene.text((x, line + 3.0), 9.0, Anchor::Middle, INK, letter(kind));
            }
        }
        for column in 0..=w.columns.len() {
            let x = self.at(column);
            let stroke = Stroke::new(INK, 1.0);
            let stroke = Some(if column < foreign { stroke.dashed(&[2.0, 2.0]) } else { stroke });
            scene.add(Shape::Circle { x, y: line, radius, fill: WHITE, stroke });
            let name = w.columns.get(column).cloned().unwrap_or_else(|| format!("h{}", w.rows.len()));
            // Where states stand close together, every few of them are named.
            let room = (self.step / text_width("h99", 10.0)).max(0.01);
            if wide && column > foreign {
                scene.text((x, line + 3.5), 10.0, Anchor::Middle, INK, "+");
            }
            if (column - foreign.min(column)).is_multiple_of((1.0 / room).ceil() as usize) || wide {
                scene.text((x, line + 28.0), 10.0, Anchor::Middle, INK, fitted(&name, 10.0, self.step.max(24.0)));
            }
        }
    }
}

/// A colour on white, so much of it.
fn faded(colour: Colour, part: f64) -> Colour {
    colour.map(|c| (255.0 + (f64::from(c) - 255.0) * part.min(1.0)).round() as u8)
}

/// A block's kind in one letter.
fn letter(kind: &str) -> String {
    match kind {
        "attention+MLP" => "B".into(),
        "nothing" => "·".into(),
        kind => kind.chars().next().unwrap_or('?').to_uppercase().collect(),
    }
}

/// The chain before and after.
pub(super) fn arcs(blocks: &Blocks, w: &Weights, form: Form) -> Scene {
    let step = if w.columns.len() <= NAMED { 104.0 } else { 30.0 };
    let row = Row { blocks, weights: w, step };
    let mut scene = Scene::default();
    scene.below(row.draw("Before: each block adds to the state before it", false, form));
    let caption = match form {
        Form::Reassign => "After: each block adds to a weighted sum of the states before it",
        Form::Input => "After: each block reads a weighted sum of the states before it",
        Form::Augment => "After: to each block's sum comes a weighted sum of the states before it",
    };
    scene.below(row.draw(caption, true, form));
    let mut notes = Vec::new();
    let (faint, many) = (w.all().filter(|(.., w)| w.abs() < FAINT).count(), w.all().count());
    if faint > 0 {
        notes.push(format!("{faint} of {many} weights are nearer to zero than {FAINT} and have no arc."));
    }
    if step < 100.0 {
        let mut kinds: Vec<&str> = blocks.kinds.iter().map(String::as_str).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let words: Vec<String> = kinds.iter().map(|k| format!("{} {k}", letter(k))).collect();
        notes.push(format!("Blocks: {}.", words.join(", ")));
    }
    if w.foreign() > 0 {
        notes.push(
            "Dashed circles are states of earlier chains: 0:h2 is chain 0's h2, brought to this chain's shape.".into(),
        );
    }
    if !notes.is_empty() {
        scene.below(heading("", &notes, 0.0, scene.width));
    }
    scene.height += 8.0;
    scene
}

/// A weight in few characters.
fn short(w: f32, tight: bool) -> String {
    let text = match w.abs() {
        x if x < FAINT => return "0".into(),
        x if x >= 99.5 => format!("{w:.0e}"),
        x if x >= 9.95 => format!("{w:.0}"),
        x if tight && (x >= 0.995) => format!("{w:.1}"),
        _ => format!("{w:.2}"),
    };
    let text = text.replace('-', "−");
    let text = text.strip_suffix(".0").map(str::to_string).unwrap_or(text);
    if tight { text.replace("0.", ".") } else { text }
}

/// The matrix: a row for each block, a column for each state.
pub(super) fn heatmap(blocks: &Blocks, w: &Weights) -> Scene {
    let tight = w.columns.len() > NAMED;
    let (cell, height, size) = if tight { (26.0, 18.0, 9.0) } else { (52.0, 26.0, 12.0) };
    let names: Vec<String> =
        (0..w.rows.len()).map(|r| format!("{} {}", r + 1, blocks.kinds.get(r).map_or("", String::as_str))).collect();
    let left = MARGIN + names.iter().map(|n| text_width(n, 11.0)).fold(0.0, f64::max).min(150.0) + 8.0;
    let width = left + cell * w.columns.len() as f64 + MARGIN;
    let mut scene = heading("Weights: a row for each block, a column for each state", &[], 13.0, width);
    let top = scene.height + 16.0;
    let most = w.all().map(|(.., w)| w.abs()).fold(f32::MIN_POSITIVE, f32::max);
    for (c, name) in w.columns.iter().enumerate() {
        let x = left + (c as f64 + 0.5) * cell;
        scene.text((x, top - 5.0), size, Anchor::Middle, INK, fitted(name, size, cell));
    }
    for (r, name) in names.iter().enumerate() {
        let y = top + (r as f64 + 0.5) * height + 4.0;
        scene.text((left - 8.0, y), 11.0, Anchor::End, INK, fitted(name, 11.0, 150.0));
    }
    for (r, c, weight) in w.all() {
        let (x, y) = (left + c as f64 * cell, top + r as f64 * height);
        let part = f64::from(weight.abs() / most);
        let full = if weight < 0.0 { LESS } else { ROUTE };
        let fill = faded(full, part);
        let stroke = Stroke::new([0xc8, 0xcd, 0xd4], 0.6);
        let told = format!("{} in block {}: {weight:.6}", w.columns[c], r + 1);
        scene.tell(Shape::Rect { x, y, width: cell, height, fill, stroke: Some(stroke) }, told);
        // Frames and signs of weights that are next to nothing hide the others.
        let nothing = weight.abs() < FAINT;
        let framed = match (w.is_skip(r, c), weight < 0.0 && !nothing) {
            (true, less) => Some(Stroke::new(INK, 1.8)).map(|s| if less { s.dashed(&[4.0, 3.0]) } else { s }),
            (false, true) => Some(Stroke::new(INK, 0.8).dashed(&[3.0, 2.0])),
            _ => None,
        };
        if let Some(stroke) = framed {
            let (l, t, r, b) = (x + 1.5, y + 1.5, x + cell - 1.5, y + height - 1.5);
            let parts = [Part::Move(l, t), Part::Line(r, t), Part::Line(r, b), Part::Line(l, b), Part::Line(l, t)];
            scene.add(Shape::Path(parts.to_vec(), stroke));
        }
        let colour = if part > 0.6 {
            WHITE
        } else if nothing {
            GREY
        } else {
            INK
        };
        let middle = (x + cell / 2.0, y + height / 2.0 + size * 0.36);
        scene.text(middle, size, Anchor::Middle, colour, short(weight, tight));
    }
    scene.height = top + w.rows.len() as f64 * height + 16.0;
    scene
}

/// How the weights that moved furthest moved over the run; `None` where the log has fewer than two of the matrix.
pub(super) fn movement(w: &Weights, course: &Course) -> Option<Scene> {
    let logged = |rows: &Vec<Vec<f32>>| {
        rows.len() == w.rows.len() && rows.iter().zip(&w.rows).all(|(logged, own)| logged.len() == own.len())
    };
    let mut seen: Vec<(f64, &Vec<Vec<f32>>)> = Vec::new();
    for (step, chains) in &course.weights {
        seen.extend(chains.iter().filter(|(id, rows)| *id == w.id && logged(rows)).map(|(_, rows)| (*step as f64, rows)));
    }
    if let Some(step) = course.step.filter(|s| seen.last().is_none_or(|(last, _)| *last < *s as f64)) {
        seen.push((step as f64, &w.rows));
    }
    if seen.len() < 2 {
        return None;
    }
    let mut moved: Vec<(f32, usize, usize)> = w
        .all()
        .map(|(r, c, _)| {
            let values = seen.iter().map(|(_, rows)| rows[r][c]);
            (values.clone().fold(f32::MIN, f32::max) - values.fold(f32::MAX, f32::min), r, c)
        })
        .collect();
    moved.sort_by(|a, b| b.0.total_cmp(&a.0));
    let rest = moved.get(DRAWN).map(|(range, ..)| *range).filter(|r| *r > 0.0);
    moved.retain(|(range, ..)| *range > 0.0);
    let dashes: [&[f64]; DRAWN] = [&[], &[8.0, 3.0], &[3.0, 3.0], &[10.0, 3.0, 2.0, 3.0], &[1.5, 2.5], &[14.0, 4.0]];
    let series = moved.iter().take(DRAWN).zip(dashes).map(|((_, r, c), dashes)| Series {
        name: format!("{} in {}", w.columns[*c], r + 1),
        points: seen.iter().map(|(step, rows)| (*step, f64::from(rows[*r][*c]))).collect(),
        stroke: Stroke::new(if w.is_skip(*r, *c) { SKIP } else { ROUTE }, 1.6).dashed(dashes),
        marked: false,
    });
    let title = match (moved.is_empty(), rest) {
        (true, _) => "Over the run no weight moved".into(),
        (_, Some(range)) => format!("The furthest moved; all others by {range:.2} at most"),
        _ => "How the weights moved over the run".to_string(),
    };
    let series: Vec<Series> = series.collect();
    if series.is_empty() {
        return Some(heading(&title, &[], 13.0, CHART.0));
    }
    Some(Chart { title, x: "step", series, width: CHART.0, height: CHART.1 }.draw())
}

/// The curves of the run: loss, accuracy and learning rate, as far as the log has them.
pub(super) fn curves(course: &Course) -> Vec<Scene> {
    type Figure = fn(&Line) -> Option<f64>;
    let batches = |name: &str, of: Figure| Series {
        name: name.into(),
        points: over_batches(&course.lines, of),
        stroke: Stroke::new(ROUTE, 1.2),
        marked: false,
    };
    let validation = |of: Figure| Series {
        name: "validation".into(),
        points: course.lines.iter().filter_map(|l| Some((l.step as f64, of(l).filter(|y| y.is_finite())?))).collect(),
        stroke: Stroke::new(SKIP, 1.8).dashed(&[6.0, 3.0]),
        marked: true,
    };
    let charts = [
        ("Loss", vec![batches("training", |l| l.loss), validation(|l| l.val_loss)]),
        ("Accuracy", vec![batches("training", |l| l.accuracy), validation(|l| l.val_accuracy)]),
        ("Learning rate", vec![batches("rate", |l| l.lr)]),
    ];
    let drawn = charts.into_iter().filter_map(|(title, mut series)| {
        series.retain(|s| !s.points.is_empty());
        let chart = Chart { title: title.into(), x: "step", series, width: CHART.0, height: CHART.1 };
        (!chart.series.is_empty()).then(|| chart.draw())
    });
    drawn.collect()
}

/// A figure over the steps, at most some hundred points: each the mean over neighbours with equally many samples. An epoch's last
/// batch, which may hold a few samples only, makes no point by itself.
fn over_batches(lines: &[Line], of: fn(&Line) -> Option<f64>) -> Vec<(f64, f64)> {
    let figures: Vec<(f64, f64, f64)> = lines
        .iter()
        .filter_map(|l| Some((l.samples.unwrap_or(1) as f64, l.step as f64, of(l).filter(|y| y.is_finite())?)))
        .collect();
    let full = figures.iter().map(|f| f.0).fold(0.0, f64::max);
    let least = full * figures.len().div_ceil(300).max(1) as f64;
    // Sums over neighbours: samples, and step and figure weighted by them.
    let mut groups: Vec<[f64; 3]> = Vec::new();
    for (samples, step, value) in figures {
        let one = [samples, samples * step, samples * value];
        match groups.last_mut() {
            Some(open) if open[0] < least => *open = sum(*open, one),
            _ => groups.push(one),
        }
    }
    if let [.., before, last] = &mut groups[..]
        && last[0] < least
    {
        *before = sum(*before, *last);
        groups.pop();
    }
    groups.iter().map(|[n, x, y]| (x / n, y / n)).collect()
}

fn sum(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_written_short() {
        let seen: Vec<String> = [0.0, 0.001, -0.001, 0.534, -0.12, 1.0, 12.3, 1e6].iter().map(|w| short(*w, true)).collect();
        assert_eq!(seen, ["0", "0", "0", ".53", "−.12", "1", "12", "1e6"]);
        assert_eq!((short(1.0, false), short(-0.5, false)), ("1.00".into(), "−0.50".into()));
    }

    #[test]
    fn an_epoch_s_short_last_batch_makes_no_point_by_itself() {
        let line = |step: u64, samples: u64, accuracy: f64| Line {
            step,
            samples: Some(samples),
            accuracy: Some(accuracy),
            ..Line::default()
        };
        // Epochs of 8, 8 and 1 samples: the last batch is all right or all wrong.
        let lines: Vec<Line> = (0..6).map(|i| if i % 3 == 2 { line(i + 1, 1, 1.0) } else { line(i + 1, 8, 0.5) }).collect();
        let points = over_batches(&lines, |l| l.accuracy);
        assert_eq!(points.len(), 4);
        assert!(points.iter().all(|(_, y)| (0.5..0.56).contains(y)), "{points:?}");
        // A log of an earlier version does not tell samples.
        let old: Vec<Line> = lines.iter().map(|l| Line { samples: None, ..l.clone() }).collect();
        assert_eq!(over_batches(&old, |l| l.accuracy).len(), 6);
        let long: Vec<Line> = (1..=1000).map(|i| line(i, 8, 0.25)).collect();
        let points = over_batches(&long, |l| l.accuracy);
        assert!(points.len() <= 300 && points.iter().all(|(_, y)| *y == 0.25), "{}", points.len());
    }
}

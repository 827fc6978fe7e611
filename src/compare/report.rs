//! A comparison in numbers and in words.

use super::runs::{End, Run};
use super::statistics::{CONFIDENCE, Difference, FORMULA, Finding, Spread};
use super::variants::BASE;
use super::{Comparison, routes};
use crate::engine::memory::bytes;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Something that is measured of each run.
pub(super) struct Measure {
    /// Its key in the report.
    pub(super) key: String,
    /// Its heading.
    pub(super) title: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    TrainLoss,
    ValLoss,
    Metric,
    StepSeconds,
    Seconds,
    Memory,
}

impl Measure {
    pub(super) fn of(&self, r: &Run) -> Option<f64> {
        match self.kind {
            Kind::TrainLoss => r.train_loss,
            Kind::ValLoss => r.val_loss,
            Kind::Metric => r.metrics.get(&self.key).copied(),
            Kind::StepSeconds => r.step_seconds,
            Kind::Seconds => r.seconds,
            Kind::Memory => r.peak_memory_bytes,
        }
        .filter(|v| v.is_finite())
    }

    /// A value for people.
    pub(super) fn text(&self, value: f64) -> String {
        let sign = if value < 0.0 { "−" } else { "" };
        let v = value.abs();
        sign.to_string()
            + &match self.kind {
                Kind::Memory => bytes(v.round() as u64),
                Kind::StepSeconds => format!("{:.2} ms", 1e3 * v),
                Kind::Seconds => format!("{v:.1} s"),
                _ if v != 0.0 && v < 1e-3 => format!("{v:.2e}"),
                _ => format!("{v:.4}"),
            }
    }

    fn spread(&self, s: &Spread) -> String {
        let deviation = s.deviation.map(|d| format!(" ± {}", self.text(d))).unwrap_or_default();
        self.text(s.mean) + &deviation
    }

    fn difference(&self, d: &Difference) -> String {
        let sign = if d.spread.mean > 0.0 { "+" } else { "" };
        let mean = format!("{sign}{}", self.text(d.spread.mean));
        match (d.low, d.high) {
            (Some(low), Some(high)) => format!("{mean} ({} to {})", self.text(low), self.text(high)),
            _ => mean,
        }
    }
}

/// A variant's figures of a measure: mean and deviation, and the difference from the base.
pub(super) struct Row {
    pub(super) variant: String,
    pub(super) spread: Spread,
    pub(super) difference: Option<Difference>,
}

impl Comparison {
    /// What was measured of any run.
    pub(super) fn measures(&self) -> Vec<Measure> {
        let one = |key: &str, title: &str, kind| Measure { key: key.into(), title: title.into(), kind };
        let mut all = vec![
            one("train_loss", "training loss, last tenth of the steps", Kind::TrainLoss),
            one("val_loss", "validation loss", Kind::ValLoss),
        ];
        let mut names: Vec<&String> = self.runs.iter().flat_map(|r| r.metrics.keys()).collect();
        names.sort();
        names.dedup();
        all.extend(names.into_iter().map(|n| one(n, &format!("validation {}", n.replace('_', " ")), Kind::Metric)));
        all.push(one("step_seconds", "time of a step, median", Kind::StepSeconds));
        all.push(one("seconds", "time of the training", Kind::Seconds));
        all.push(one("peak_memory_bytes", "peak memory of the training", Kind::Memory));
        all.retain(|m| self.runs.iter().any(|r| r.end == End::Finished && m.of(r).is_some()));
        all
    }

    /// The variants' figures of a measure.
    pub(super) fn rows(&self, m: &Measure) -> Vec<Row> {
        let value = |variant: &str, seed: &u64| m.of(self.finished(variant, *seed)?);
        let row = |variant: &str| {
            let values: Vec<f64> = self.seeds.iter().filter_map(|seed| value(variant, seed)).collect();
            let pair = |seed: &u64| Some((value(variant, seed)?, value(BASE, seed)?));
            let pairs: Vec<(f64, f64)> = self.seeds.iter().filter_map(pair).collect();
            let difference = if variant == BASE { None } else { Difference::of(&pairs) };
            Some(Row { variant: variant.into(), spread: Spread::of(&values)?, difference })
        };
        self.variants.iter().filter_map(|v| row(&v.name)).collect()
    }

    /// The table's cells: a measure's title, then a variant, its spread, its difference.
    pub(super) fn table(&self) -> Vec<(String, Vec<[String; 3]>)> {
        let cells = |m: &Measure, r: Row| {
            [r.variant, m.spread(&r.spread), r.difference.map(|d| m.difference(&d)).unwrap_or_default()]
        };
        self.measures().iter().map(|m| (m.title.clone(), self.rows(m).into_iter().map(|r| cells(m, r)).collect())).collect()
    }

    /// What the numbers allow to say.
    pub(super) fn sentence(&self) -> String {
        let measures = self.measures();
        let loss = |kind| measures.iter().find(|m| m.kind == kind);
        let Some(m) = loss(Kind::ValLoss).or(loss(Kind::TrainLoss)) else { return "No run was finished.".into() };
        let what = if m.kind == Kind::ValLoss { "validation loss" } else { "training loss" };
        let rows: Vec<(String, Difference)> =
            self.rows(m).into_iter().filter_map(|r| Some((r.variant, r.difference?))).collect();
        let named = |finding| {
            let of = rows.iter().filter(|(_, d)| d.finding() == finding);
            of.map(|(name, d)| format!("{name}: {}", m.difference(d))).collect::<Vec<_>>().join(", ")
        };
        if rows.is_empty() {
            return format!("There is nothing to compare with {BASE} yet.");
        }
        let n = rows.iter().map(|(_, d)| d.spread.n).max().unwrap_or(0);
        if n < 2 {
            let all = named(Finding::Unknown);
            return format!(
                "With one seed nothing can be said. The {what} differs from that of {BASE} ({all}), but chance makes such differences; --seeds 5 tells more."
            );
        }
        let mut parts = Vec::new();
        for (finding, says) in [(Finding::Lower, "lower with"), (Finding::Higher, "higher with")] {
            let all = named(finding);
            if !all.is_empty() {
                parts.push(format!("{says} {all}"));
            }
        }
        let nothing = named(Finding::Nothing);
        if !nothing.is_empty() {
            parts.push(format!("no difference seen with {nothing}"));
        }
        let unknown = named(Finding::Unknown);
        if !unknown.is_empty() {
            parts.push(format!("one pair says nothing of {unknown}"));
        }
        let mut text = format!("{} against {BASE}, over {n} seeds: {}.", capital(what), parts.join("; "));
        let widest = rows.iter().filter_map(|(_, d)| Some((d.high? - d.low?) / 2.0)).fold(0.0, f64::max);
        if n < 5 && widest > 0.0 {
            let _ =
                write!(text, " {n} seeds are few: differences below about {} cannot be told from chance.", m.text(widest));
        }
        if rows.len() > 2 {
            let _ = write!(text, " Of {} comparisons one may seem different by chance.", rows.len());
        }
        text
    }

    /// What a reader must know besides.
    pub(super) fn notices(&self) -> Vec<String> {
        let mut out = Vec::new();
        for v in &self.variants {
            let runs: Vec<&Run> = self.runs.iter().filter(|r| r.variant == v.name).collect();
            let diverged = runs.iter().filter(|r| r.end == End::Diverged).count();
            if diverged > 0 {
                out.push(format!(
                    "{}: {diverged} of {} runs diverged; they and their pairs are left out",
                    v.name,
                    runs.len()
                ));
            }
            let jumps = runs.iter().filter(|r| r.jumps > 0).count();
            if jumps > 0 {
                out.push(format!(
                    "{}: in {jumps} of {} runs the loss jumped, and the run went back at a lower rate",
                    v.name,
                    runs.len()
                ));
            }
            let guesses = runs.iter().filter(|r| r.guesses).count();
            if guesses > 0 {
                let advice = "its differences tell nothing; another --lr or more steps may";
                out.push(format!(
                    "{}: in {guesses} of {} runs the validation is no better than always naming the commonest label: {advice}",
                    v.name,
                    runs.len()
                ));
            }
            if runs.iter().any(|r| !routes(r)) {
                out.push(format!("{}: no chain was routed, so it is the network as it is", v.name));
            }
        }
        out
    }

    fn settings(&self) -> String {
        let m = &self.manifest;
        let first = self.runs.iter().find(|r| r.end == End::Finished);
        let course = first.map(|r| format!("{} steps, batches of {}", r.steps, r.batch_size)).unwrap_or_default();
        let lr = m.lr.map(|lr| format!(", highest rate {lr} for all")).unwrap_or_default();
        let start = if m.from_scratch { "fresh weights for each seed" } else { "the model's weights" };
        let seeds = if self.seeds.len() == 1 { "one seed".into() } else { format!("{} seeds", self.seeds.len()) };
        format!("{course}{lr}, from {start}; {seeds}")
    }

    /// What the page says first.
    pub(super) fn lines(&self) -> (String, Vec<String>) {
        let model = self.manifest.model.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let mut lines = vec![self.sentence(), format!("{}.", self.settings()), format!("Intervals: {FORMULA}.")];
        lines.extend(self.notices().iter().map(|n| format!("Note: {n}.")));
        (format!("{model}: does the router help?"), lines)
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let measures = self.measures();
        let figures = |m: &Measure, variant: &str| {
            let row = self.rows(m).into_iter().find(|r| r.variant == variant);
            row.map_or(Value::Null, |r| {
                let mut value = json!(r.spread);
                value["difference"] = json!(r.difference);
                value
            })
        };
        let variant = |name: &str, flags: &[String]| {
            let runs: Vec<&Run> = self.runs.iter().filter(|r| r.variant == name).collect();
            let mut value = json!({"name": name, "flags": flags, "parameters": runs.first().map(|r| r.parameters),
                "coefficients": runs.first().map(|r| r.coefficients), "gates": runs.first().map(|r| r.gates),
                "train_loss": null, "val_loss": null});
            let mut metrics = Map::new();
            for m in &measures {
                match m.kind {
                    Kind::Metric => _ = metrics.insert(m.key.clone(), figures(m, name)),
                    _ => value[&m.key] = figures(m, name),
                }
            }
            value["metrics"] = Value::Object(metrics);
            value["runs"] = json!(runs);
            value
        };
        let first = self.runs.iter().find(|r| r.end == End::Finished);
        json!({
            "model": self.manifest.model.to_string_lossy(), "against": BASE, "from_scratch": self.manifest.from_scratch, "seeds": self.seeds,
            "steps": first.map(|r| r.steps), "batch_size": first.map(|r| r.batch_size), "lr": self.manifest.lr,
            "options": {"network": self.manifest.network, "train": self.manifest.course},
            "variants": self.variants.iter().map(|v| variant(&v.name, &v.flags)).collect::<Vec<_>>(),
            "confidence": CONFIDENCE, "interval": FORMULA, "says": self.sentence(), "notices": self.notices(),
            "interrupted": self.interrupted, "out": self.out.to_string_lossy(),
            "pages": self.pages.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>(),
        })
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let table = self.table();
        let width =
            |column: usize| table.iter().flat_map(|(_, rows)| rows).map(|r| r[column].chars().count()).max().unwrap_or(0);
        let (name, spread) = (width(0), width(1));
        for (i, (title, rows)) in table.iter().enumerate() {
            let note = if i == 0 { format!("; difference from {BASE} with its 95% interval") } else { String::new() };
            let _ = writeln!(out, "{title}{note}");
            for [variant, of, difference] in rows {
                let line = format!("  {variant:<name$}  {of:<spread$}  {difference}");
                let _ = writeln!(out, "{}", line.trim_end());
            }
        }
        let _ = write!(out, "\n{}\n{}.\n", self.sentence(), self.settings());
        self.notices().iter().for_each(|n| _ = writeln!(out, "note: {n}"));
        let _ = writeln!(out, "intervals  {FORMULA}");
        let _ = writeln!(out, "page       {}", self.pages.last().map(|p| p.display().to_string()).unwrap_or_default());
        let _ = writeln!(out, "runs       {}", self.out.display());
        if self.interrupted {
            let _ = writeln!(out, "next       the same command with --resume goes on from here");
        }
        out
    }
}

/// A run in one line.
pub(super) fn run(r: &Run) -> String {
    let mut text = format!("{}, seed {}: ", r.variant, r.seed);
    if r.end == End::Diverged {
        return text + "diverged";
    }
    let figures = [("loss", r.train_loss), ("val", r.val_loss)];
    let said: Vec<String> = figures.iter().filter_map(|(name, v)| Some(format!("{name} {:.4}", (*v)?))).collect();
    text.push_str(&said.join(", "));
    r.seconds.iter().for_each(|s| _ = write!(text, ", {s:.1} s"));
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|c| c.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

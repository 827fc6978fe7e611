//! A run in words, before its first step.

use super::progress::{Beginning, duration};
use super::setup::{LARGEST_BATCH, Setup};
use crate::engine::memory;
use crate::engine::ort::locate;

impl Setup {
    pub(super) fn plan(&self) -> Beginning {
        let (a, g) = (&self.a, &self.graph);
        let parameters = g.parameters();
        let trained = g.states.iter().filter(|s| s.trainable).count();
        let epochs = self.schedule.total.div_ceil(self.steps_per_epoch).max(1);
        let mut lines = vec![
            (
                "model",
                format!(
                    "{}  ({trained} tensors train, {parameters} elements; {}, {})",
                    a.model.display(),
                    g.losses_text(),
                    g.optimizer
                ),
            ),
            ("data", self.set.describe()),
        ];
        if let Some((set, evaluator)) = &self.validation {
            lines.push(("val", set.describe()));
            if a.verbose {
                lines.push(("", format!("evaluation graph: {}", evaluator.origin)));
            }
        }
        let s = &self.schedule;
        let ranks = self.steps.ranks.size();
        let over = if ranks > 1 { format!(" over {ranks} ranks") } else { String::new() };
        let warmup = if s.warmup > 0 { format!(", {} steps of warm-up", s.warmup) } else { String::new() };
        lines.push((
            "course",
            format!(
                "{} steps, {}; batch {}{}; lr {} ({}) {}{warmup}; on {}{}",
                s.total,
                passes(s.total, self.steps_per_epoch),
                self.why_batch(),
                over,
                s.lr,
                self.rate.why,
                s.kind.name(),
                self.device,
                if self.in_blocks { ", convolutions in blocks" } else { "" },
            ),
        ));
        if let Some(cost) = self.cost {
            let left = s.total.saturating_sub(self.position.step);
            let memory = cost.memory.map(|m| format!("; {} of memory", memory::bytes(m))).unwrap_or_default();
            let each =
                if cost.seconds < 1.0 { format!("{:.0} ms", 1e3 * cost.seconds) } else { format!("{:.1} s", cost.seconds) };
            let held_back = if self.validation.is_some() { ", without validation" } else { "" };
            lines.push((
                "expected",
                format!("about {} at {each} a step{held_back}{memory}", duration(left as f64 * cost.seconds)),
            ));
        }
        if let Some(path) = &self.resumed {
            lines.push(("resumed", format!("after step {}, from {}", self.position.step, path.display())));
        }
        if a.verbose {
            let runtime = locate().map(|r| format!("{}, found by {}", r.path.display(), r.found)).unwrap_or_default();
            lines.push(("runtime", runtime));
            lines.push(("writes", format!("{}, {}", self.dir.display(), self.log_path.display())));
        }
        Beginning { lines, steps: s.total, done: self.position.step, epochs }
    }

    fn why_batch(&self) -> String {
        let why = match (self.graph.wanted.batch, self.a.course.batch_size) {
            (Some(_), _) => "fixed by the graph".into(),
            (_, Some(_)) => return self.batch.to_string(),
            _ if self.batch < LARGEST_BATCH => format!("default: there are {} samples, few", self.set.len()),
            _ => "default".into(),
        };
        format!("{} ({why})", self.batch)
    }
}

/// How much of the data a number of steps sees.
fn passes(steps: u64, epoch: u64) -> String {
    match (steps / epoch, steps % epoch) {
        (0, _) => format!("{:.0}% of an epoch of {epoch} steps", 100.0 * steps as f64 / epoch as f64),
        (1, 0) => format!("1 epoch of {epoch} steps"),
        (n, 0) => format!("{n} epochs of {epoch} steps"),
        _ => format!("{:.1} epochs of {epoch} steps", steps as f64 / epoch as f64),
    }
}

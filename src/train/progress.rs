//! What a person sees of a run: a bar on a terminal, plain lines elsewhere.

use super::metrics::Language;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

/// What is told before the first step.
#[derive(Clone, Debug)]
pub(super) struct Beginning {
    /// Lines: name and text.
    pub(super) lines: Vec<(&'static str, String)>,
    pub(super) steps: u64,
    /// Steps done before, if the run is resumed.
    pub(super) done: u64,
    /// Epochs, the last one perhaps begun only.
    pub(super) epochs: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Steps done with this one.
    pub(super) step: u64,
    pub(super) epoch: u64,
    /// Mean loss of the epoch so far.
    pub(super) loss: f64,
    /// Accuracy of the epoch so far.
    pub(super) accuracy: Option<f64>,
    pub(super) lr: f64,
    /// Samples per second, lately.
    pub(super) rate: f64,
}

/// An epoch that ended, or the run within one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch<'a> {
    pub(super) last: Step,
    /// Several losses by themselves: of the validation, else of the epoch.
    pub(super) each: &'a str,
    pub(super) validation: Option<(f64, Option<f64>)>,
    /// What the validation loss says about a language model.
    pub(super) language: Option<Language>,
    /// Other figures of the validation.
    pub(super) metrics: &'a [(String, f64)],
    /// Is it the best validation so far?
    pub(super) best: bool,
    pub(super) seconds: f64,
}

/// Receives the progress of a run.
pub(super) trait Reporter {
    fn begin(&mut self, _: &Beginning) {}
    fn step(&mut self, _: &Step) {}
    fn epoch(&mut self, _: &Epoch) {}
    /// The validation of an epoch has come so far.
    fn validating(&mut self, _samples: usize, _of: usize) {}
    fn notice(&mut self, _: &str) {}
}

pub(super) struct Silent;

impl Reporter for Silent {}

/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// How often the bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(80);

/// Standard error: a bar if it is a terminal, lines otherwise.
pub(super) struct Terminal {
    bar: Option<ProgressBar>,
    plan: Option<Beginning>,
    drawn: Instant,
    begun: Instant,
}

impl Default for Terminal {
    fn default() -> Terminal {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let bar = (stderr().is_terminal() && !dumb).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(15));
            let coloured = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            let colour = if coloured { ".cyan/blue" } else { "" };
            let template = format!("{{prefix}} [{{wide_bar{}{colour}}}] {{msg}}", if coloured { ":" } else { "" });
            let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar
        });
        Terminal { bar, plan: None, drawn: Instant::now(), begun: Instant::now() }
    }
}

impl Terminal {
    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| write_line(text)),
            None => write_line(text),
        }
    }

    fn epoch_name(&self, epoch: u64) -> String {
        let all = self.plan.as_ref().map_or(epoch, |p| p.epochs);
        let width = all.to_string().len();
        format!("epoch {epoch:>width$}/{all}")
    }

    fn left(&self, step: u64) -> String {
        let Some(plan) = &self.plan else { return String::new() };
        let done = step.saturating_sub(plan.done);
        let each = self.begun.elapsed().as_secs_f64() / done.max(1) as f64;
        duration(each * plan.steps.saturating_sub(step) as f64)
    }
}

fn write_line(text: &str) {
    // Training goes on when standard error is closed.
    let _ = writeln!(stderr(), "{text}");
}

/// Seconds as 7 s, 4:07 or 2:04:07.
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{}:{:02}", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

pub(super) fn rate(samples: f64) -> String {
    if samples >= 10.0 { format!("{samples:.0} samples/s") } else { format!("{samples:.1} samples/s") }
}

fn figures(s: &Step) -> String {
    let accuracy = s.accuracy.map(|a| format!("  acc {}", percent(a))).unwrap_or_default();
    format!("loss {:.4}{accuracy}  lr {:.2e}", s.loss, s.lr)
}

impl Reporter for Terminal {
    fn begin(&mut self, plan: &Beginning) {
        for (name, text) in &plan.lines {
            self.line(&format!("{name:<10}{text}"));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(plan.steps);
            bar.set_position(plan.done);
        }
        self.plan = Some(plan.clone());
        (self.begun, self.drawn) = (Instant::now(), Instant::now());
    }

    fn step(&mut self, s: &Step) {
        let every = if self.bar.is_some() { DRAW_EVERY } else { LINE_EVERY };
        if self.drawn.elapsed() < every {
            return;
        }
        self.drawn = Instant::now();
        let left = self.left(s.step);
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(self.epoch_name(s.epoch));
                bar.set_position(s.step);
                bar.set_message(format!("{}  {}  {left} left", figures(s), rate(s.rate)));
            }
            None => {
                let steps = self.plan.as_ref().map_or(s.step, |p| p.steps);
                let name = self.epoch_name(s.epoch);
                write_line(&format!("{name}  step {}/{steps}  {}  {}  {left} left", s.step, figures(s), rate(s.rate)));
            }
        }
    }

    fn validating(&mut self, samples: usize, of: usize) {
        if let Some(bar) = self.bar.as_ref().filter(|_| self.drawn.elapsed() >= DRAW_EVERY) {
            bar.set_message(format!("validating {samples}/{of}"));
            self.drawn = Instant::now();
        }
    }

    fn epoch(&mut self, e: &Epoch) {
        let validation = e.validation.map(|(loss, accuracy)| {
            let accuracy = accuracy.map(|a| format!("  val acc {}", percent(a))).unwrap_or_default();
            let language = e.language.map(|l| format!("  {}", l.text())).unwrap_or_default();
            let others: String = e.metrics.iter().map(|(name, v)| format!("  {name} {v:.4}")).collect();
            format!("  val loss {loss:.4}{language}{accuracy}{others}{}", if e.best { "  best" } else { "" })
        });
        let name = self.epoch_name(e.last.epoch);
        let each = if e.each.is_empty() { String::new() } else { format!(" ({})", e.each) };
        let validation = validation.unwrap_or_default() + &each;
        self.line(&format!("{name}  {}{validation}  {}  {}", figures(&e.last), rate(e.last.rate), duration(e.seconds)));
        if let Some(bar) = &self.bar {
            bar.set_position(e.last.step);
        }
    }

    fn notice(&mut self, text: &str) {
        self.line(&format!("note: {text}"));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0.4, 59.6, 247.0, 7447.0].map(duration), ["0 s", "1:00", "4:07", "2:04:07"]);
        assert_eq!(
            (percent(0.98765), rate(9.34), rate(1234.5)),
            ("98.77%".into(), "9.3 samples/s".into(), "1234 samples/s".into())
        );
    }
}

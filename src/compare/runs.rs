//! Runs: each is a rewrite and a training in processes of this tool, in a directory of its own.

use super::variants::Variant;
use crate::engine::child;
use crate::error::Failure;
use crate::io::files::Outputs;
use crate::train::interrupt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum End {
    Finished,
    Diverged,
}

/// A run that is over, as its `result.json` keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) variant: String,
    pub(super) seed: u64,
    pub(super) end: End,
    /// Why it diverged.
    pub(super) why: Option<String>,
    pub(super) steps: u64,
    pub(super) batch_size: u64,
    /// The highest rate.
    pub(super) lr: Option<f64>,
    /// Mean over the last tenth of the steps, before their updates.
    pub(super) train_loss: Option<f64>,
    /// After the last step.
    pub(super) val_loss: Option<f64>,
    /// Other figures of the last validation.
    pub(super) metrics: BTreeMap<String, f64>,
    /// Median over the steps.
    pub(super) step_seconds: Option<f64>,
    /// Of the steps, validations and checkpoints.
    pub(super) seconds: Option<f64>,
    pub(super) peak_memory_bytes: Option<f64>,
    /// How often the loss jumped and the run went back.
    pub(super) jumps: usize,
    /// Elements that train, the router's coefficients and gates apart.
    pub(super) parameters: u64,
    pub(super) coefficients: u64,
    pub(super) gates: u64,
    pub(super) notices: Vec<String>,
    /// Is the last validation no better than a guess?
    #[serde(default)]
    pub(super) guesses: bool,
}

/// What came of the order to make a run.
pub(super) enum Done {
    Run(Box<Run>),
    Interrupted,
}

/// A run that is to be made.
pub(super) struct Order<'a> {
    pub(super) model: &'a Path,
    /// Where relative paths among the words begin.
    pub(super) directory: &'a Path,
    pub(super) variant: &'a Variant,
    pub(super) seed: u64,
    pub(super) from_scratch: bool,
    /// Words for the main job.
    pub(super) network: &'a [String],
    /// Words for `train`.
    pub(super) course: Vec<String>,
    /// Where it writes.
    pub(super) dir: PathBuf,
}

/// The directory of a run.
pub(super) fn place(out: &Path, variant: &str, seed: u64) -> PathBuf {
    out.join(variant).join(format!("seed-{seed}"))
}

const RESULT: &str = "result.json";

impl Run {
    /// The result that a directory holds; nothing where the run is not over.
    pub(super) fn kept(dir: &Path) -> Result<Option<Run>, Failure> {
        let path = dir.join(RESULT);
        let Ok(text) = std::fs::read_to_string(&path) else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|e| Failure::input(format!("is no result of a run: {e}")).at(&path))
    }
}

/// The steps of a run's log.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Step {
    pub(super) step: u64,
    /// No number where all labels are ignored.
    pub(super) loss: Option<f64>,
    pub(super) seconds: f64,
    pub(super) val_loss: Option<f64>,
}

/// Reads the log of a run. A last line that a killed run left unfinished is left out.
pub(super) fn log(dir: &Path) -> Result<Vec<Step>, Failure> {
    let path = dir.join("run").join("log.jsonl");
    let file = std::fs::File::open(&path).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(&path))?;
    Ok(BufReader::new(file).lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()).collect())
}

impl Order<'_> {
    /// Rewrites and trains. Fails with the status of the process that failed; a run that diverges is a result.
    pub(super) fn carry_out(&self) -> Result<Done, Failure> {
        let cannot = |e: std::io::Error| Failure::input(format!("cannot be made: {e}")).at(&self.dir);
        std::fs::create_dir_all(&self.dir).map_err(cannot)?;
        let (forward, seed) = (self.dir.join("model.onnx"), self.seed.to_string());
        let mut words: Vec<String> = vec![path(self.model)?, "-o".into(), path(&forward)?];
        words.extend(self.variant.flags.iter().chain(self.network).cloned());
        words.extend(["--eval-graph", "--verify", "none", "--json", "--seed", &seed].map(String::from));
        if self.from_scratch {
            words.extend(["--reinit".into(), seed.clone()]);
        }
        let rewritten = match self.tool(&words)? {
            Said { status: Some(0), out, .. } => json(&out)?,
            said => return self.not_done(said),
        };
        let mut words: Vec<String> = vec!["train".into(), path(&self.dir.join("model.train.onnx"))?];
        words.extend(self.course.iter().cloned());
        words.extend(
            ["--seed", &seed, "--out", &path(&self.dir.join("run"))?, "--keep", "1", "--json", "--quiet", "--resume"]
                .map(String::from),
        );
        let (end, trained, why) = match self.tool(&words)? {
            Said { status: Some(0), out, .. } => (End::Finished, json(&out)?, None),
            said if said.status == Some(1) && said.err.contains("diverged") => (End::Diverged, Value::Null, Some(said.err)),
            said => return self.not_done(said),
        };
        let run = self.result(&rewritten, &trained, (end, why))?;
        let mut files = Outputs::default();
        let text = serde_json::to_vec_pretty(&run).map_err(|e| Failure::fault(&e.to_string()))?;
        files.add_bytes(&text, &self.dir.join(RESULT))?;
        files.commit()?;
        // They are large, and the forward graph with the run's checkpoints is what is of use.
        for kind in ["train", "eval", "init"] {
            let _ = std::fs::remove_file(self.dir.join(format!("model.{kind}.onnx")));
        }
        Ok(Done::Run(Box::new(run)))
    }

    fn not_done(&self, said: Said) -> Result<Done, Failure> {
        if interrupt::came() || said.status == Some(i32::from(interrupt::STATUS)) {
            return Ok(Done::Interrupted);
        }
        let why = said.err.trim().trim_start_matches("error: ");
        let why = if why.is_empty() { "the process was ended from outside" } else { why };
        let what = format!("variant `{}`, seed {}: {why}", self.variant.name, self.seed);
        Err(if said.status == Some(1) { Failure::check(what) } else { Failure::input(what) })
    }

    fn result(&self, rewritten: &Value, trained: &Value, (end, why): (End, Option<String>)) -> Result<Run, Failure> {
        let steps = log(&self.dir)?;
        let mut metrics = BTreeMap::new();
        let validation = &trained["validation"];
        for name in ["accuracy", "perplexity", "bits_per_byte"] {
            metrics.extend(validation[name].as_f64().map(|v| (name.to_string(), v)));
        }
        for (name, value) in trained["metrics"].as_object().into_iter().flatten() {
            metrics.extend(value.as_f64().map(|v| (name.clone(), v)));
        }
        let finished = end == End::Finished;
        let router = &rewritten["router"];
        let text = |v: &Value| v.as_array().into_iter().flatten().filter_map(|n| Some(n.as_str()?.to_string())).collect();
        let mut notices: Vec<String> = text(&rewritten["notices"]);
        notices.extend(text(&trained["notices"]));
        Ok(Run {
            variant: self.variant.name.clone(),
            seed: self.seed,
            end,
            why: why.map(|w| w.trim().trim_start_matches("error: ").to_string()),
            steps: steps.last().map_or(0, |s| s.step),
            batch_size: trained["batch_size"].as_u64().unwrap_or(0),
            lr: trained["lr"]["highest"].as_f64(),
            train_loss: if finished { last_loss(&steps) } else { None },
            val_loss: validation["loss"].as_f64(),
            metrics,
            step_seconds: median(steps.iter().map(|s| s.seconds).collect()),
            seconds: trained["seconds"].as_f64(),
            peak_memory_bytes: trained["peak_memory_bytes"].as_f64(),
            jumps: trained["jumps"].as_array().map_or(0, Vec::len),
            parameters: rewritten["parameters"].as_u64().unwrap_or(0),
            coefficients: router["coefficients"].as_u64().unwrap_or(0),
            gates: router["gates"].as_u64().unwrap_or(0),
            notices,
            guesses: trained["verdicts"].as_array().into_iter().flatten().any(|v| v["kind"] == "no-better-than-chance"),
        })
    }

    /// Runs this tool. After Ctrl-C it is told to stop, and still waited for.
    fn tool(&self, words: &[String]) -> Result<Said, Failure> {
        let program = child::program().ok_or_else(|| Failure::input("the system does not tell where this tool lies"))?;
        let mut command = program.command();
        command.args(words).current_dir(self.directory).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A terminal's Ctrl-C reaches this process alone, which hands it on once: a second signal ends a run at once.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let fail = |e: std::io::Error| Failure::input(format!("cannot be started: {e}")).at(&program.path);
        let mut process = command.spawn().map_err(fail)?;
        let (out, err) = (read(process.stdout.take()), read(process.stderr.take()));
        let mut told = false;
        let status = loop {
            if let Some(status) = process.try_wait().map_err(fail)? {
                break status;
            }
            if interrupt::came() && !told {
                told = true;
                stop(&mut process);
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = |reader: std::thread::JoinHandle<String>| reader.join().unwrap_or_default();
        Ok(Said { status: status.code(), out: text(out), err: text(err) })
    }
}

/// What a process of this tool said.
struct Said {
    status: Option<i32>,
    out: String,
    err: String,
}

fn read(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Asks a process to stop. Where it cannot be asked it is ended; its run goes on from its last checkpoint.
fn stop(process: &mut Child) {
    let asked = cfg!(unix)
        && std::process::Command::new("kill").args(["-TERM", &process.id().to_string()]).status().is_ok_and(|s| s.success());
    if !asked {
        let _ = process.kill();
    }
}

fn path(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(String::from);
    text.ok_or_else(|| Failure::input("is no Unicode; compare needs paths that are").at(path))
}

fn json(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|e| Failure::fault(&format!("a process of it gave no report: {e}")))
}

/// Mean loss over the last tenth of the steps.
fn last_loss(steps: &[Step]) -> Option<f64> {
    let last = &steps[steps.len() - steps.len().div_ceil(10)..];
    let known: Vec<f64> = last.iter().filter_map(|s| s.loss).collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (n > 0).then(|| (values[(n - 1) / 2] + values[n / 2]) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_training_loss_is_that_of_the_last_tenth_and_the_time_a_median() {
        let step = |step: u64| Step { step, loss: Some(step as f64), seconds: 1.0 / step as f64, val_loss: None };
        let steps: Vec<Step> = (1..=25).map(step).collect();
        assert_eq!((last_loss(&steps), last_loss(&steps[..1]), last_loss(&[])), (Some(24.0), Some(1.0), None));
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0]), median(Vec::new())), (Some(2.0), Some(2.5), None));
    }
}

//! `compare`: does the router help on this model and this data? Each variant of the network is trained from the same start on the same
//! batches for the same steps, over seeds, and compared with the network as it is, pair by pair.
//!
//! `runs` makes a run, `variants` says what is compared, `statistics` what the numbers allow to say, `report` puts it into words and
//! `page` into pictures. A directory holds the runs and a manifest of what they have in common; runs that are over are never made again.

mod page;
mod report;
mod runs;
mod statistics;
mod variants;

use crate::cli::CompareArgs;
use crate::error::Failure;
use crate::io::files::{self, Outputs};
use crate::train::{Hash, interrupt};
use runs::{Done, End, Order, Run};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use variants::{BASE, Variant, variants};

/// What the runs of a directory have in common.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    model: PathBuf,
    /// Hash of the model's file.
    hash: String,
    /// Where relative paths among the options begin.
    directory: PathBuf,
    from_scratch: bool,
    /// Options of the main job.
    network: Vec<String>,
    /// Options of `train`.
    course: Vec<String>,
    variants: Vec<Variant>,
    /// The rate of all runs, once the first has found it.
    lr: Option<f64>,
}

const MANIFEST: &str = "compare.json";

/// A comparison, as far as its runs were made.
pub struct Comparison {
    manifest: Manifest,
    /// The variants that were asked for.
    variants: Vec<Variant>,
    seeds: Vec<u64>,
    runs: Vec<Run>,
    out: PathBuf,
    /// The pages that were written.
    pages: Vec<PathBuf>,
    /// Was it stopped before its end?
    pub interrupted: bool,
}

/// Runs `compare`, with progress on standard error. A run that diverges is reported. Fails with status 1 when a network can be neither
/// rewritten nor trained, 2 for bad usage or input.
pub fn compare(a: &CompareArgs) -> Result<Comparison, Failure> {
    interrupt::watch();
    let asked = variants(&a.variants)?;
    let out = a.out.clone().unwrap_or_else(|| default_dir(&a.model));
    let is_new = !out.join(MANIFEST).exists();
    let manifest = Manifest::open(a, &asked, &out)?;
    manifest.write(&out)?;
    let seeds: Vec<u64> = (0..a.seeds).map(|i| a.seed.wrapping_add(i)).collect();
    let mut found = Comparison {
        variants: asked.clone(),
        seeds: seeds.clone(),
        runs: Vec::new(),
        out: out.clone(),
        pages: Vec::new(),
        interrupted: false,
        manifest,
    };
    let orders = seeds.iter().flat_map(|seed| asked.iter().map(move |v| (v, *seed)));
    let count = seeds.len() * asked.len();
    for (i, (variant, seed)) in orders.enumerate() {
        let dir = runs::place(&out, &variant.name, seed);
        let (run, kept) = match Run::kept(&dir)? {
            Some(run) => (run, true),
            None if interrupt::came() => {
                found.interrupted = true;
                break;
            }
            None => match found.order(variant, seed, dir).carry_out() {
                Ok(Done::Run(run)) => (*run, false),
                Ok(Done::Interrupted) => {
                    found.interrupted = true;
                    break;
                }
                Err(e) => {
                    if is_new {
                        found.forget(variant, seed);
                    }
                    return Err(e);
                }
            },
        };
        if !a.quiet {
            eprintln!("[{}/{count}] {}{}", i + 1, report::run(&run), if kept { " (kept)" } else { "" });
        }
        found.check(&run)?;
        if found.manifest.lr.is_none() && run.lr.is_some() {
            found.manifest.lr = run.lr;
            found.manifest.write(&out)?;
        }
        found.runs.push(run);
    }
    found.write(a.html.as_deref())?;
    Ok(found)
}

/// Where a comparison lies without `--out`.
fn default_dir(model: &Path) -> PathBuf {
    model.with_extension("compare")
}

impl Comparison {
    fn order<'a>(&'a self, variant: &'a Variant, seed: u64, dir: PathBuf) -> Order<'a> {
        let m = &self.manifest;
        let mut course = m.course.clone();
        // What is trained decides the default, and a range test its result: the first run's holds for all.
        if let Some(lr) = m.lr {
            let is_given = |option: &str| m.course.iter().any(|word| word.starts_with(option));
            // Nor does a rate that is given change how it goes down.
            if !is_given("--schedule=") && (!is_given("--lr=") || m.course.contains(&"--lr=auto".into())) {
                course.push("--schedule=wsd".into());
            }
            course.retain(|word| !word.starts_with("--lr="));
            course.push(format!("--lr={lr}"));
        }
        Order {
            model: &m.model,
            directory: &m.directory,
            variant,
            seed,
            from_scratch: m.from_scratch,
            network: &m.network,
            course,
            dir,
        }
    }

    /// Removes what the first run began, if it failed: nothing is to be resumed.
    fn forget(&self, variant: &Variant, seed: u64) {
        if self.runs.is_empty() {
            let _ = std::fs::remove_dir_all(runs::place(&self.out, &variant.name, seed));
            let _ = std::fs::remove_dir(self.out.join(&variant.name));
            let _ = std::fs::remove_file(self.out.join(MANIFEST));
            let _ = std::fs::remove_dir(&self.out);
        }
    }

    /// Runs can only be compared where they took the same steps on the same batches.
    fn check(&self, run: &Run) -> Result<(), Failure> {
        let finished = |r: &&Run| r.end == End::Finished;
        let Some(first) = self.runs.iter().find(finished).filter(|_| finished(&run)) else { return Ok(()) };
        let of = |r: &Run| (r.steps, r.batch_size);
        if of(first) == of(run) {
            return Ok(());
        }
        let said = |r: &Run| format!("{} made {} steps with batches of {}", r.variant, r.steps, r.batch_size);
        Err(Failure::input(format!("the runs cannot be compared: {}, {}", said(first), said(run)))
            .help("--steps and --batch-size fix both; --batch dynamic lets every graph take any batch"))
    }

    /// The run of a variant from a seed, if it was finished.
    fn finished(&self, variant: &str, seed: u64) -> Option<&Run> {
        self.runs.iter().find(|r| r.variant == variant && r.seed == seed && r.end == End::Finished)
    }

    /// Writes the report and the page.
    fn write(&mut self, html: Option<&Path>) -> Result<(), Failure> {
        self.pages = std::iter::once(self.out.join("compare.html")).chain(html.map(Path::to_path_buf)).collect();
        let mut files = Outputs::sparing(&[&self.manifest.model]);
        let page = page::html(self)?;
        for path in &self.pages {
            files.add_bytes(page.as_bytes(), path)?;
        }
        files.add_bytes(format!("{:#}\n", self.json()).as_bytes(), &self.out.join("report.json"))?;
        files.commit()
    }
}

impl Manifest {
    /// What was asked for, or with `--resume` what the directory holds, with more variants perhaps. Fails where the directory holds runs of
    /// something else.
    fn open(a: &CompareArgs, asked: &[Variant], out: &Path) -> Result<Manifest, Failure> {
        let absolute = |e: std::io::Error| Failure::input(format!("cannot be read: {e}")).at(&a.model);
        let (_, bytes) = files::read_model(&a.model)?;
        let mut hash = Hash::default();
        hash.add(&bytes);
        let mut manifest = Manifest {
            model: std::path::absolute(&a.model).map_err(absolute)?,
            hash: hash.text(),
            directory: std::env::current_dir().map_err(absolute)?,
            from_scratch: a.from_scratch,
            network: text(&a.network.words)?,
            course: text(&a.course.words)?,
            variants: asked.to_vec(),
            lr: None,
        };
        let path = out.join(MANIFEST);
        let Ok(kept) = std::fs::read_to_string(&path) else {
            if a.resume && a.course.words.is_empty() {
                return Err(Failure::input("holds no comparison to go on with")
                    .at(out)
                    .help("give --data, or another --out"));
            }
            return Ok(manifest);
        };
        let kept: Manifest = serde_json::from_str(&kept)
            .map_err(|e| Failure::input(format!("is no manifest of a comparison: {e}")).at(&path))?;
        if a.overwrite {
            for variant in &kept.variants {
                let dir = out.join(&variant.name);
                let gone = if dir.is_dir() { std::fs::remove_dir_all(&dir) } else { Ok(()) };
                gone.map_err(|e| Failure::input(format!("cannot be removed: {e}")).at(&dir))?;
            }
            return Ok(manifest);
        }
        if !a.resume {
            return Err(Failure::input("is of an earlier comparison")
                .at(&path)
                .help("--resume goes on with it, --overwrite removes it, --out chooses another directory"));
        }
        if a.course.words.is_empty() {
            (manifest.directory, manifest.course) = (kept.directory.clone(), kept.course.clone());
            if a.network.words.is_empty() {
                (manifest.network, manifest.from_scratch) = (kept.network.clone(), kept.from_scratch);
            }
        }
        let differences = kept.differences(&manifest);
        if !differences.is_empty() {
            return Err(Failure::input(format!("--resume would not go on with what it finds: {}", differences.join("; ")))
                .at(&path)
                .help("give the options that it was made with, or another --out; --seeds and --variants may add to it"));
        }
        let new = manifest.variants.into_iter().filter(|v| !kept.variants.contains(v)).collect::<Vec<_>>();
        Ok(Manifest { variants: [kept.variants, new].concat(), lr: kept.lr, ..manifest })
    }

    fn differences(&self, now: &Manifest) -> Vec<String> {
        let mut out = Vec::new();
        if self.hash != now.hash {
            out.push("the model is another one".into());
        }
        if self.directory != now.directory {
            out.push(format!("it was begun in {}", self.directory.display()));
        }
        let scratch = |m: &Manifest| if m.from_scratch { vec!["--from-scratch".to_string()] } else { Vec::new() };
        for (then, now) in [(&self.network, &now.network), (&self.course, &now.course), (&scratch(self), &scratch(now))] {
            let only = |a: &[String], b: &[String]| {
                a.iter().filter(|w| !b.iter().any(|b| is_same(w, b))).cloned().collect::<Vec<_>>().join(" ")
            };
            match (only(then, now), only(now, then)) {
                (then, now) if then.is_empty() && now.is_empty() => {}
                (then, now) if now.is_empty() => out.push(format!("{then} is missing")),
                (then, now) if then.is_empty() => out.push(format!("{now} is new")),
                (then, now) => out.push(format!("{now}, it was {then}")),
            }
        }
        for variant in &now.variants {
            if let Some(old) = self.variants.iter().find(|v| v.name == variant.name && *v != variant) {
                out.push(format!("`{}` stood for {}", old.name, old.flags.join(" ")));
            }
        }
        out
    }

    fn write(&self, out: &Path) -> Result<(), Failure> {
        std::fs::create_dir_all(out).map_err(|e| Failure::input(format!("cannot be made: {e}")).at(out))?;
        let mut files = Outputs::default();
        let text = serde_json::to_vec_pretty(self).map_err(|e| Failure::fault(&e.to_string()))?;
        files.add_bytes(&text, &out.join(MANIFEST))?;
        files.commit()
    }
}

/// Are two options the same, up to how a number is written?
fn is_same(a: &str, b: &str) -> bool {
    let parts = |w: &str| w.split_once('=').and_then(|(name, v)| Some((name.to_string(), v.parse::<f64>().ok()?)));
    a == b || parts(a).is_some_and(|a| parts(b) == Some(a))
}

fn text(words: &[OsString]) -> Result<Vec<String>, Failure> {
    let refused = |w: &OsString| Failure::input(format!("{w:?} is no Unicode; compare needs options that are"));
    words.iter().map(|w| w.to_str().map(String::from).ok_or_else(|| refused(w))).collect()
}

/// Does a variant route anything?
fn routes(run: &Run) -> bool {
    run.variant == BASE || run.coefficients > 0
}

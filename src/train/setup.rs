//! Everything that is decided, read and checked before the first step.

use super::checkpoint::{self, Checkpoints, Position};
use super::course::{Course, Environment, Hash};
use super::data::{self, Batches, DataOptions, Dataset, batches_per_epoch};
use super::evaluation::Evaluator;
use super::graph::TrainingGraph;
use super::log::Log;
use super::progress::Reporter;
use super::ranks::Ranks;
use super::rates::{Begins, Ground, Rate};
use super::schedule::Schedule;
use super::sessions::{engine_failure, graph_file, open_session};
use super::start::{balance, put, start_state};
use super::steps::Steps;
use super::tensorboard::Events;
use super::topology;
use super::trial;
use crate::cli::{CourseOptions, RateChoice, ScheduleKind, TrainArgs};
use crate::engine::ort::device::Device;
use crate::engine::ort::stepper::DeviceState;
use crate::engine::ort::{OrtEngine, locate};
use crate::engine::{Tensors, memory};
use crate::error::Failure;
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A run that is ready to go.
pub(super) struct Setup {
    /// The options, those of the run that is resumed included.
    pub(super) a: TrainArgs,
    pub(super) graph: TrainingGraph,
    pub(super) set: Arc<dyn Dataset>,
    pub(super) validation: Option<(Arc<dyn Dataset>, Evaluator)>,
    /// Samples in a batch, those of all ranks together.
    pub(super) batch: usize,
    /// Does an epoch's last batch go when it is not full?
    pub(super) drop_last: bool,
    pub(super) schedule: Schedule,
    pub(super) begins: Begins,
    /// The highest rate.
    pub(super) rate: Rate,
    pub(super) steps_per_epoch: u64,
    pub(super) steps: Steps,
    /// Is there a validation? The first rank alone has its data.
    pub(super) validates: bool,
    pub(super) state: DeviceState,
    pub(super) device: Device,
    /// Do convolutions compute on channels in blocks?
    pub(super) in_blocks: bool,
    pub(super) checkpoints: Checkpoints,
    pub(super) dir: PathBuf,
    pub(super) log: Log,
    pub(super) log_path: PathBuf,
    pub(super) position: Position,
    pub(super) resumed: Option<PathBuf>,
    /// The forward graph, if the result is to be exported.
    pub(super) forward: Option<PathBuf>,
    pub(super) notices: Vec<String>,
    /// What a step costs.
    pub(super) cost: Option<Cost>,
}

/// The default batch of a set that has samples enough.
pub(super) const LARGEST_BATCH: usize = 32;

/// What a step costs, measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    /// The memory of the process after it, in bytes, where that can be told.
    pub(super) memory: Option<u64>,
}

impl Setup {
    /// Prepares a run. Errors: whatever would make it fail later, as far as that can be told.
    pub(super) fn new(a: &TrainArgs, ranks: &Ranks, reporter: &mut dyn Reporter) -> Result<Setup, Failure> {
        let dir = a.out.clone().unwrap_or_else(|| default_dir(&a.model));
        let before = if a.resume { checkpoint::peek(&dir)? } else { None };
        // A run that goes on over another number of ranks keeps its batches, which are shared out anew.
        let kept = before.as_ref().filter(|_| a.course.batch_size.is_none()).map(|p| p.course.batch_size);
        let course = before.as_ref().map_or_else(|| a.course.clone(), |p| a.course.over(&p.options));
        let a = TrainArgs { course, ..a.clone() };
        let o = &a.course;
        check_numbers(o)?;
        let mut graph = TrainingGraph::read(&graph_file(&a.model, ranks))?;
        if !ranks.is_alone() {
            graph.can_be_summed()?;
        }
        let forward = o.export.as_ref().map(|_| find_forward(o, &graph)).transpose()?;
        let mut notices = Vec::new();

        let given = Data::open(o, &graph)?;
        let set = given.set;
        notices.extend(set.notices().iter().cloned());
        let (batch, drop_last) = batch_size(o, &graph, set.len(), kept, ranks.size())?;
        let steps_per_epoch = batches_per_epoch(set.len(), batch, drop_last) as u64;
        if steps_per_epoch == 0 {
            return Err(Failure::input(format!("has {} samples, fewer than one batch of {batch}", set.len()))
                .at(&given.path)
                .help("give more data or a smaller --batch-size"));
        }
        graph.graph.assumed_batch = Some((batch / ranks.size()) as i64);
        notices.extend(balance(&mut graph, set.as_ref()).map_err(|e| e.at(&given.path))?);
        let total = o.steps.unwrap_or_else(|| o.epochs.unwrap_or(1) * steps_per_epoch);

        let (engine, session) = open_session(&a, &graph, ranks, &mut notices)?;
        let in_blocks = session.in_blocks;
        let update = graph
            .update
            .as_ref()
            .map(|u| engine.open_file_safely(&u.path, &u.graph).map_err(|e| engine_failure(e, &u.path)));
        let update = update.transpose()?;
        let wired = Steps::new(&graph, session, update, engine.device, ranks);
        let (mut steps, mut state) = wired.map_err(|e| engine_failure(e, &a.model))?;
        let validates = given.validation.is_some();
        let validation = match given.validation.filter(|_| ranks.is_first()) {
            None => None,
            Some(held_back) => Some(open_validation(o, held_back, &graph, &engine, batch, &mut notices)?),
        };

        let mut checkpoints =
            if ranks.is_first() { Checkpoints::open(&dir, a.keep)? } else { Checkpoints::of_another(&dir) };
        checkpoints.network = topology::network(&graph)?;
        // What is to go need not be readable.
        let going = a.overwrite && !checkpoints.all().is_empty();
        let found = if going || !(ranks.is_first() || a.resume) { None } else { checkpoints.newest()? };
        let resumed = match found {
            Some((tensors, position, path)) if a.resume => {
                put(&mut state, &graph, &tensors, true).map_err(|e| e.at(&path))?;
                Some((position, path))
            }
            Some((_, _, path)) => {
                return Err(Failure::input("is a checkpoint of an earlier run")
                    .at(&path)
                    .help("--resume goes on with it, --overwrite removes it, --out chooses another directory"));
            }
            None => {
                if a.resume {
                    notices.push(format!("there is no checkpoint in {}; the run starts at the beginning", dir.display()));
                }
                start_state(o, &graph, &mut state)?;
                if going && ranks.is_first() {
                    checkpoints.clear()?;
                }
                None
            }
        };

        let begins = Begins::of(&graph, &state);
        let then = resumed.as_ref().map(|(p, _)| &p.course);
        let seed = o.seed.unwrap_or(0);
        let rate = match (o.lr, then) {
            (Some(RateChoice::Rate(lr)), _) => Rate::given(lr, "as asked for"),
            (_, Some(then)) => Rate::given(then.lr, "as the run had it"),
            (asked, None) => {
                let batches = || Batches::of_part(set.clone(), seed, batch, (0, 0), drop_last, ranks.part());
                let mut ground = Ground { t: &graph, steps: &mut steps, state: &mut state, batches: &batches };
                match trial::steps(total) {
                    _ if asked.is_some() => Rate::by_range_test(&mut ground, begins, &mut notices)?,
                    Some(steps) if o.head_first.is_none() => {
                        reporter.notice(&format!("no --lr: a few rates are tried first, {steps} steps each"));
                        Rate::by_trial(&mut ground, begins, steps)?
                    }
                    _ => Rate::by_rule(&graph, begins),
                }
            }
        };
        let lr = rate.lr;
        let warmup = o.warmup.or(then.map(|c| c.warmup)).unwrap_or((steps_per_epoch.min(total) / 4).clamp(4, 100));
        let kind = o.schedule.or(then.and_then(|c| ScheduleKind::from_str(&c.schedule, false).ok()));
        let is_given = matches!(o.lr, Some(RateChoice::Rate(_)));
        let kind = kind.unwrap_or(if is_given { ScheduleKind::Constant } else { ScheduleKind::Wsd });
        let min_lr = o.min_lr.unwrap_or(0.0);
        let has_head = begins == Begins::FreshHead;
        let head = if has_head { (o.head_first.unwrap_or(0.0) * total as f64).round() as u64 } else { 0 };
        let schedule = Schedule { kind, lr, min_lr, warmup, total, head };
        if min_lr > lr {
            return Err(Failure::input(format!("--min-lr {min_lr} is above --lr {lr}")));
        }
        if o.head_first.is_some_and(|x| x > 0.0) && !has_head {
            notices.push(
                "--head-first has no effect: the graph has no fresh head on trained weights (--classes N makes one)".into(),
            );
        }
        let course = Course {
            graph: graph.hash.clone(),
            data: data_hash(set.as_ref(), &given.reading, drop_last)?,
            seed,
            batch_size: batch,
            lr,
            schedule: kind.name().into(),
            warmup,
            min_lr,
            head_first: head,
            // A run whose rate does not depend on the steps to come may be prolonged.
            steps: matches!(kind, ScheduleKind::Cosine | ScheduleKind::Linear).then_some(total),
            environment: Environment {
                device: engine.device.to_string(),
                threads: engine.threads,
                ranks: ranks.size(),
                runtime: locate().ok().and_then(|r| r.version).unwrap_or_default(),
                optimization: format!("{:?}", engine.level).to_lowercase(),
            },
        };
        let options = o.clone().to_be_remembered();
        let (position, resumed) = match resumed {
            Some((position, path)) => {
                let environment = course.check(&position.course).map_err(|e| e.at(&path))?;
                if !environment.is_empty() {
                    notices.push(format!("the last bits may come out otherwise: {}", environment.join(", ")));
                }
                (Position { course, options, ..position }, Some(path))
            }
            None => (Position { course, options, ..Position::default() }, None),
        };
        let log_path = o.log.clone().unwrap_or_else(|| dir.join("log.jsonl"));
        let mut log = if ranks.is_first() { Log::open(&log_path, position.step)? } else { Log::of_another(&log_path) };
        log.events = o.log_dir.as_deref().filter(|_| ranks.is_first()).map(Events::open).transpose()?;
        let device = engine.device;
        let mut setup = Setup {
            a,
            graph,
            set,
            validation,
            batch,
            drop_last,
            schedule,
            begins,
            rate,
            steps_per_epoch,
            steps,
            validates,
            state,
            device,
            in_blocks,
            checkpoints,
            dir,
            log,
            log_path,
            position,
            resumed,
            forward,
            notices,
            cost: None,
        };
        setup.agree()?;
        setup.cost = setup.try_a_step()?;
        reporter.begin(&setup.plan());
        setup.notices.iter().for_each(|n| reporter.notice(n));
        Ok(setup)
    }

    /// Fails where ranks do not start from the same.
    fn agree(&self) -> Result<(), Failure> {
        let ranks = &self.steps.ranks;
        if ranks.is_alone() {
            return Ok(());
        }
        let mut hash = Hash::default();
        let course = Course { environment: Environment::default(), ..self.position.course.clone() };
        hash.add(serde_json::to_string(&course).unwrap_or_default().as_bytes());
        ranks.same(hash.number(), "what the run is to do (graph, data, options)")?;
        ranks.same(self.state_hash()?, "the first state")
    }

    /// A hash of the state as it is.
    pub(super) fn state_hash(&self) -> Result<u64, Failure> {
        let mut state = self.state.tensors().map_err(|e| engine_failure(e, &self.graph.path))?;
        state.sort_keys();
        let mut hash = Hash::default();
        for (name, t) in &state {
            hash.add(name.as_bytes());
            hash.add(t.bytes());
        }
        Ok(hash.number())
    }

    /// Runs the first batch twice, with all state held, and measures the second time.
    fn try_a_step(&mut self) -> Result<Option<Cost>, Failure> {
        if self.position.step >= self.schedule.total {
            return Ok(None);
        }
        let order = data::order(self.position.course.seed, self.position.epoch, self.set.len());
        let rows: Vec<usize> = order.iter().take(self.batch).map(|r| *r as usize).collect();
        let ranks = self.steps.ranks.clone();
        let rows = &rows[ranks.share(rows.len())];
        let feeds = if rows.is_empty() { Tensors::new() } else { self.set.batch(rows, self.position.epoch)? };
        self.steps.hold(&self.state, |_| true);
        let mut seconds = f64::INFINITY;
        for _ in 0..2 {
            let begun = Instant::now();
            let done = self.steps.step(&self.graph, (&feeds, rows.len()), 0.0, false, &mut self.state);
            done.map_err(|e| e.at(&self.graph.path))?;
            seconds = seconds.min(begun.elapsed().as_secs_f64());
            if seconds > 5.0 && ranks.is_alone() {
                break;
            }
        }
        self.steps.hold(&self.state, |_| false);
        Ok(Some(Cost { seconds, memory: memory::resident() }))
    }
}

fn check_numbers(a: &CourseOptions) -> Result<(), Failure> {
    if a.epochs == Some(0) || a.steps == Some(0) {
        return Err(Failure::input("there is nothing to do: --epochs and --steps take numbers of at least 1"));
    }
    if let Some(RateChoice::Rate(lr)) = a.lr
        && !(lr.is_finite() && lr > 0.0)
    {
        return Err(Failure::input(format!("--lr {lr} is no positive number")));
    }
    if a.patience.is_some() && a.val.is_none() && a.val_split.is_none() && a.data.as_deref().is_some_and(|d| !d.is_dir()) {
        return Err(Failure::input("--patience needs validation data").help("--val, or --val-split 0.1"));
    }
    if let Some(least) = a.min_lr.filter(|v| !(v.is_finite() && *v >= 0.0)) {
        return Err(Failure::input(format!("--min-lr {least} is no number of at least 0")));
    }
    for (name, share) in [("--head-first", a.head_first), ("--val-split", a.val_split)] {
        if let Some(x) = share.filter(|x| !(0.0..1.0).contains(x)) {
            return Err(Failure::input(format!("{name} {x} is no part of the whole, such as 0.1")));
        }
    }
    Ok(())
}

/// A graph that fixes its batch takes full batches of that size only. A small set gets small batches, so that an epoch has steps.
/// One sample by itself has no statistics, so a batch of one is left out where the graph takes any.
/// Each of several ranks takes batches of the size that is asked for; what comes back is that of all, or what an earlier run `kept`.
fn batch_size(
    a: &CourseOptions,
    t: &TrainingGraph,
    samples: usize,
    kept: Option<usize>,
    ranks: usize,
) -> Result<(usize, bool), Failure> {
    let asked = a.batch_size.map(|n| n as usize);
    match (t.wanted.batch, asked) {
        (Some(fixed), Some(n)) if n != fixed => {
            Err(Failure::input(format!("--batch-size {n}: the training graph takes batches of exactly {fixed}"))
                .at(&t.path)
                .help(format!("leave --batch-size out, or rewrite the model with --batch dynamic or --batch {n}")))
        }
        (Some(fixed), _) => Ok((fixed * ranks, true)),
        (None, asked) => {
            let each = asked.unwrap_or((samples / 40).next_power_of_two().clamp(8, LARGEST_BATCH));
            let batch = kept.unwrap_or(each * ranks);
            let alone = t.takes_statistics() && samples > batch && (1..2 * ranks).contains(&(samples % batch));
            Ok((batch, a.drop_last || alone))
        }
    }
}

/// The data sets of a run.
struct Data {
    path: PathBuf,
    reading: DataOptions,
    set: Arc<dyn Dataset>,
    validation: Option<(PathBuf, Arc<dyn Dataset>)>,
}

impl Data {
    fn open(o: &CourseOptions, graph: &TrainingGraph) -> Result<Data, Failure> {
        let mut path = o.data.clone().ok_or_else(|| Failure::input("--data is missing"))?;
        let mut val = o.val.clone();
        if let Some((train, held_back)) = data::parts(&path)? {
            if o.val_split.is_none() {
                val = val.or(held_back);
            }
            path = train;
        }
        let reading = DataOptions { seed: o.seed.unwrap_or(0), ..o.reading.clone() };
        let set = data::open(&path, &graph.wanted, &reading)?;
        // Validation data are never augmented.
        let classes = set.classes().map(<[String]>::to_vec);
        let as_it_is = DataOptions { flip: false, crop: false, classes, ..reading.clone() };
        let (set, validation) = match (val, o.val_split.filter(|x| *x > 0.0)) {
            (Some(val), _) => {
                let held_back = data::open(&val, &graph.wanted, &as_it_is)?;
                (set, Some((val, held_back)))
            }
            (None, Some(share)) => {
                // Unless training augments its samples, they are read in one way.
                let augments = reading.flip || reading.crop;
                let all = if augments { data::open(&path, &graph.wanted, &as_it_is)? } else { set.clone() };
                let (set, held_back) = data::split(set, all, share).map_err(|e| e.at(&path))?;
                (set, Some((path.clone(), held_back)))
            }
            (None, None) => (set, None),
        };
        Ok(Data { path, reading, set, validation })
    }
}

fn open_validation(
    a: &CourseOptions,
    (path, set): (PathBuf, Arc<dyn Dataset>),
    graph: &TrainingGraph,
    engine: &OrtEngine,
    batch: usize,
    notices: &mut Vec<String>,
) -> Result<(Arc<dyn Dataset>, Evaluator), Failure> {
    notices.extend(set.notices().iter().filter(|n| !notices.contains(n)).cloned().collect::<Vec<_>>());
    let evaluator = Evaluator::open(graph, a.eval_graph.as_deref(), engine, &a.metric)?;
    if let Some(fixed) = evaluator.batch {
        let rest = set.len() % fixed;
        if set.len() < fixed {
            return Err(Failure::input(format!("has {} samples, fewer than one batch of {fixed}", set.len())).at(&path));
        }
        if rest > 0 {
            notices.push(format!(
                "validation leaves out {rest} of {} samples: the evaluation graph takes batches of exactly {fixed}",
                set.len()
            ));
        }
        if fixed < batch {
            notices.push(format!(
                "validation takes batches of {fixed}, which the evaluation graph fixes ({}); rewriting with --batch dynamic --eval-graph makes it faster",
                evaluator.origin
            ));
        }
    }
    Ok((set, evaluator))
}

/// Where a run writes without `--out`: `m.ancre.run` for `m.ancre.train.onnx`.
fn default_dir(model: &Path) -> PathBuf {
    let stem = model.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
    let stem = [".train", ".grad", ".update"].into_iter().fold(stem, |s, kind| s.strip_suffix(kind).unwrap_or(s));
    model.with_file_name(format!("{stem}.run"))
}

fn find_forward(a: &CourseOptions, t: &TrainingGraph) -> Result<PathBuf, Failure> {
    let export = a.export.clone().unwrap_or_default();
    let forward = a.forward.clone().or_else(|| t.beside("", ".onnx"));
    let forward = forward.filter(|p| p.is_file()).ok_or_else(|| {
        Failure::input("--export needs the forward graph, and there is none beside the training graph")
            .at(&t.path)
            .help("name it with --forward STEM.ancre.onnx")
    })?;
    if [&forward, &t.path].iter().any(|p| crate::io::outputs::is_same_file(p, &export)) {
        return Err(Failure::input("--export would replace a graph that it is made of").at(&export));
    }
    if export.is_dir() {
        return Err(Failure::input("--export names a directory, a file was expected").at(&export));
    }
    Ok(forward)
}

/// A hash of three samples, of their number, and of how they are read.
fn data_hash(set: &dyn Dataset, o: &DataOptions, drop_last: bool) -> Result<String, Failure> {
    let n = set.len();
    let mut hash = Hash::default();
    let how = (n, o.flip, o.crop, &o.mean, &o.std, o.window, o.stride, o.image_size, drop_last);
    hash.add(format!("{how:?}").as_bytes());
    for (name, t) in set.batch(&[0, n / 2, n - 1], 0)? {
        hash.add(name.as_bytes());
        hash.add(t.bytes());
    }
    Ok(hash.text())
}

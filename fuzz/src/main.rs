//! `ancre-fuzz`: see CONTRIBUTING.md.
//!
//! ```text
//! ancre-fuzz [--seconds N] [--executions N] [--seed S] [--corpus DIR] [--out DIR] [--claims] [--crashes]
//! ancre-fuzz --replay FILE…
//! ancre-fuzz --minimise FILE
//! ```
//!
//! The search runs in a process of its own, which may run out of stack, memory or time; this one notes how it ended and starts
//! it again. `--out` takes findings, `kept/` (inputs that showed something new) and, with `--claims`, `claims/` (pairs of models
//! that the proof says are equal, one of each kind of change). Exit status: 1 when there are findings; with `--crashes`, when one is a crash: a panic, a full stack, no end, too much memory.

use ancre_fuzz::case::Case;
use ancre_fuzz::course;
use ancre_fuzz::guard::{self, Counting};
use ancre_fuzz::minimise::minimise;
use ancre_fuzz::search::{Finding, Search};
use ancre_fuzz::seeds::{self, Seed};
use std::error::Error;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

#[global_allocator]
static MEMORY: Counting = Counting;

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// How the kinds of findings begin that are crashes.
const CRASHES: [&str; 5] = ["panic", "out of memory", "no end", "stack overflow", "the process ended"];

#[derive(Clone)]
struct Options {
    seconds: u64,
    executions: u64,
    seed: u64,
    corpus: PathBuf,
    out: PathBuf,
    /// Number of the first case.
    from: u64,
    worker: bool,
    claims: bool,
    crashes: bool,
    replay: Vec<PathBuf>,
    minimise: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Options, Box<dyn Error>> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut o = Options {
            seconds: 60,
            executions: u64::MAX,
            seed: 0,
            corpus: here.join("corpus"),
            out: here.join("findings"),
            from: 0,
            worker: false,
            claims: false,
            crashes: false,
            replay: Vec::new(),
            minimise: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(a) = args.next() {
            let mut next = || args.next().ok_or(format!("{a} needs a value"));
            match a.as_str() {
                "--seconds" => o.seconds = next()?.parse()?,
                "--executions" => (o.executions, o.seconds) = (next()?.parse()?, u64::MAX),
                "--seed" => o.seed = next()?.parse()?,
                "--corpus" => o.corpus = next()?.into(),
                "--out" => o.out = next()?.into(),
                "--from" => o.from = next()?.parse()?,
                "--worker" => o.worker = true,
                "--claims" => o.claims = true,
                "--crashes" => o.crashes = true,
                "--minimise" => o.minimise = Some(next()?.into()),
                "--replay" => {
                    o.replay = args.by_ref().map(PathBuf::from).collect();
                    if o.replay.is_empty() {
                        return Err("--replay needs files".into());
                    }
                }
                _ => return Err(format!("there is no option {a}").into()),
            }
        }
        Ok(o)
    }

    fn state(&self) -> PathBuf {
        self.out.join("under-way")
    }
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let o = Options::parse()?;
    guard::note_panics();
    if let Some(path) = &o.minimise {
        return make_small(path);
    }
    if !o.replay.is_empty() {
        guard::watch();
        return Ok(replay(&o.replay));
    }
    if o.worker { work(&o).map(|()| ExitCode::SUCCESS) } else { supervise(&o) }
}

/// Runs cases one by one; prints what must not be.
fn replay(paths: &[PathBuf]) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for path in paths {
        let Ok(case) = Case::read(path) else { continue };
        let outcome = course::run(&case);
        for f in &outcome.faults {
            println!("{}\n    {}", f.kind, f.detail.replace('\n', "\n    "));
            status = ExitCode::FAILURE;
        }
        let again = course::run(&case).emitted;
        if again != outcome.emitted {
            println!("two runs write different files");
            status = ExitCode::FAILURE;
        }
    }
    status
}

/// What a case shows in a process of its own.
fn shown(case: &Case, at: &Path) -> Vec<String> {
    let file = at.with_file_name(case.file_name("minimising"));
    let ran = fs::write(&file, &case.bytes)
        .and_then(|()| Command::new(std::env::current_exe()?).arg("--replay").arg(&file).output());
    let _ = fs::remove_file(&file);
    let Ok(ran) = ran else { return Vec::new() };
    if ran.status.code().is_none() {
        return vec![ending(&String::from_utf8_lossy(&ran.stderr))];
    }
    String::from_utf8_lossy(&ran.stdout).lines().filter(|l| !l.starts_with(' ')).map(str::to_string).collect()
}

fn make_small(path: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let case = Case::read(path)?;
    let kinds = shown(&case, path);
    let Some(kind) = kinds.first() else { return Err("the case shows nothing".into()) };
    let small = minimise(&case, |c| shown(c, path).contains(kind));
    let to = path.with_file_name(small.file_name(&format!("small-{}", slug(kind))));
    fs::write(&to, &small.bytes)?;
    println!("{kind}\n{} bytes, now {}: {}", case.bytes.len(), small.bytes.len(), to.display());
    Ok(ExitCode::SUCCESS)
}

/// How a process ended, by what it said last.
fn ending(said: &str) -> String {
    let place = said.lines().find_map(|l| l.split_once("passes/src/")).map_or("", |(_, place)| place);
    let place = place.rsplit_once(':').map_or(place, |(line, _)| line);
    match said {
        s if s.contains("out of memory") => format!("out of memory at passes/src/{place}"),
        s if s.contains("no end") => "no end".into(),
        s if s.contains("overflowed its stack") => "stack overflow".into(),
        _ => "the process ended".into(),
    }
}

fn slug(kind: &str) -> String {
    let plain = kind.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let mut text: String = plain.collect::<String>().replace("passes-src-", "");
    while text.contains("--") {
        text = text.replace("--", "-");
    }
    text.chars().take(90).collect::<String>().trim_matches('-').to_string()
}

fn write_finding(o: &Options, kind: &str, f: &Finding) -> std::io::Result<()> {
    let name = slug(kind);
    let text = format!("{kind}\n{}\n{}\n", f.done.join(", "), f.detail);
    fs::write(o.out.join(format!("{name}.txt")), text)?;
    fs::write(o.out.join(f.case.file_name(&name)), &f.case.bytes)
}

/// Starts the search again and again until its time is over.
fn supervise(o: &Options) -> Result<ExitCode, Box<dyn Error>> {
    ["kept", "claims"].iter().try_for_each(|d| fs::create_dir_all(o.out.join(d)))?;
    let begin = Instant::now();
    let mut from = o.from;
    while begin.elapsed().as_secs() < o.seconds && from < o.executions {
        let said = o.out.join("stderr");
        let left = o.seconds.saturating_sub(begin.elapsed().as_secs());
        let mut worker = Command::new(std::env::current_exe()?);
        worker.args(["--worker", "--seconds", &left.to_string()]);
        if o.executions < u64::MAX {
            worker.args(["--executions", &o.executions.to_string()]);
        }
        worker.args(["--seed", &o.seed.to_string(), "--from", &from.to_string()]);
        worker.args(o.claims.then_some("--claims"));
        worker.arg("--corpus").arg(&o.corpus).arg("--out").arg(&o.out);
        let status = worker.stderr(Stdio::from(File::create(&said)?)).status()?;
        if status.success() {
            break;
        }
        let said = String::from_utf8_lossy(&fs::read(&said)?).into_owned();
        if status.code().is_some() {
            return Err(format!("the search failed: {said}").into());
        }
        let (number, case) = under_way(o)?;
        let kind = ending(&said);
        println!("case {number}: {kind}");
        let detail = said.lines().take(60).collect::<Vec<_>>().join("\n");
        write_finding(o, &kind, &Finding { count: 1, case, detail, done: Vec::new() })?;
        from = number + 1;
    }
    let notes = fs::read_dir(&o.out)?.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "txt"));
    let kinds: Vec<String> = notes.map(fs::read_to_string).collect::<Result<_, _>>()?;
    let crashes = kinds.iter().filter(|k| CRASHES.iter().any(|c| k.starts_with(c))).count();
    println!("{} kinds of findings, {crashes} of them crashes, in {}", kinds.len(), o.out.display());
    let failed = if o.crashes { crashes > 0 } else { !kinds.is_empty() };
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The case that a worker had begun, and its number.
fn under_way(o: &Options) -> Result<(u64, Case), Box<dyn Error>> {
    let mut all = Vec::new();
    File::open(o.state())?.read_to_end(&mut all)?;
    let word = |i: usize| all.get(8 * i..8 * i + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let bytes = all.get(24..24 + word(2) as usize).unwrap_or_default().to_vec();
    Ok((word(0), Case { bytes, options: word(1) as u32 }))
}

/// Searches, until the time is over or the process dies of a case.
fn work(o: &Options) -> Result<(), Box<dyn Error>> {
    guard::watch();
    let mut state = File::create(o.state())?;
    let mut start = seeds::of_checkout(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let directories = [o.corpus.clone(), o.corpus.join("regressions"), o.out.join("kept")];
    start.extend(directories.iter().flat_map(|d| seeds::of_directory(d)).map(|(_, case)| Seed::of(case)));
    let mut search = Search::new(o.seed, start);
    for (kind, finding) in &search.findings {
        write_finding(o, kind, finding)?;
    }
    // Without optimisation the seeds take a while.
    let begin = Instant::now();
    let mut shown = begin;
    let mut number = o.from;
    while begin.elapsed().as_secs() < o.seconds && number < o.executions {
        let mut begun = Ok(());
        let step = search.step(number, |case| begun = begin_case(&mut state, number, case));
        begun?;
        for kind in &step.found {
            write_finding(o, kind, &search.findings[kind])?;
        }
        if let Some(case) = step.kept {
            fs::write(o.out.join("kept").join(case.file_name(&format!("{number:09}"))), &case.bytes)?;
        }
        if let Some(claim) = step.claim.filter(|_| o.claims) {
            let name = format!("{number:09}-{}", slug(&claim.kind));
            fs::write(o.out.join("claims").join(format!("{name}.a.onnx")), claim.model)?;
            fs::write(o.out.join("claims").join(format!("{name}.b.onnx")), claim.changed)?;
        }
        number += 1;
        if shown.elapsed() > PROGRESS {
            shown = Instant::now();
            say(&search, number, begin);
        }
    }
    say(&search, number, begin);
    search.findings.iter().for_each(|(kind, f)| println!("{:7} {kind}", f.count));
    Ok(())
}

/// Writes down a case before it runs.
fn begin_case(state: &mut File, number: u64, case: &Case) -> std::io::Result<()> {
    let words = [number, case.options.into(), case.bytes.len() as u64];
    let mut all: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    all.extend_from_slice(&case.bytes);
    state.seek(SeekFrom::Start(0))?;
    state.write_all(&all)
}

fn say(s: &Search, number: u64, begin: Instant) {
    let (inputs, features) = s.size();
    let seconds = begin.elapsed().as_secs_f64().max(0.1);
    println!(
        "{number} executions, {:.0} a second, {:.0} % could be read, {inputs} inputs, {features} features, {} kinds of findings",
        s.executions as f64 / seconds,
        100.0 * s.read as f64 / s.executions.max(1) as f64,
        s.findings.len()
    );
}

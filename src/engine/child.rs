//! Engines in a process of their own. What an engine dies of (a wild pointer, memory without end, a loop without one) ends that
//! process and is an error here.
//!
//! The tool starts itself (a [`Program`]) with a hidden argument and speaks with it through pipes (`wire`). The child watches its own
//! memory: what it holds in RAM, not its address space, which an ONNX Runtime with its threads and arenas takes many times
//! what it uses of. The parent watches the clock. Both limits grow with the model.

use super::wire::{self, Answer, Message, Reply, Request};
use super::{Engine, EngineError, ExternalData, Limit, Session, Tensors, culprit};
use crate::engine::memory;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io::{self, BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// The hidden argument, the tool's first one.
pub const ARGUMENT: &str = "__engine";

/// Exit status of a child that used too much memory.
const TOO_MUCH: i32 = 77;

/// How much an engine may take. A limit that is `None` follows from the model's size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Time of loading or running a model.
    pub time: Option<Duration>,
}

impl Limits {
    /// The limits for a model of so many bytes.
    fn for_size(self, size: u64) -> (u64, Duration) {
        // An engine holds the message, the weights, packed copies of them, activations and their copies; small models may have
        // large activations.
        let memory = self.memory.unwrap_or((4 << 30) + 16 * size);
        let time = self.time.unwrap_or(Duration::from_secs(120 + (size >> 20)));
        (memory, time)
    }
}

/// Memory that one question about types may take.
const ORACLE_MEMORY: u64 = 2 << 30;
/// Time that it may take.
const ORACLE_TIME: Duration = Duration::from_secs(10);

/// The tool as a program to start.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// What stands before the tool's own arguments: an extension of Python is started through its interpreter.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// The executable that runs now, if the system tells which it is.
    pub fn this() -> Option<Program> {
        std::env::current_exe().ok().map(|path| Program { path, arguments: Vec::new() })
    }

    /// The command that starts it, to which the tool's arguments are added.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments);
        command
    }
}

/// The program to start, and the limits. While this is not set, engines run in this process.
static ISOLATION: RwLock<Option<(Arc<Program>, Limits)>> = RwLock::new(None);

/// Makes engines run in processes of their own, started from this program, from now on.
pub fn isolate(program: Program, limits: Limits) {
    *ISOLATION.write().unwrap_or_else(PoisonError::into_inner) = Some((Arc::new(program), limits));
}

fn isolation() -> Option<(Arc<Program>, Limits)> {
    ISOLATION.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// This tool as a program to start: the one that engines are started from, else the executable that runs now.
pub fn program() -> Option<Arc<Program>> {
    isolation().map(|(program, _)| program).or_else(|| Program::this().map(Arc::new))
}

/// The engine in a process of its own; `None` where engines run in this process.
pub(super) fn engine(name: &'static str, library: Option<PathBuf>) -> Option<Box<dyn Engine>> {
    let (program, limits) = isolation()?;
    let start = Start { name, program, library };
    Some(Box::new(ChildEngine { start, limits, process: Rc::default(), sessions: Cell::new(0) }))
}

/// The process that is asked for types. It starts at the first question.
#[derive(Default)]
pub(super) struct Oracle(Option<Process>);

impl Oracle {
    /// The answer to a question about types; or why the engine died. The next question starts it anew.
    pub(super) fn ask(&mut self, request: &Request, blobs: &[&[u8]]) -> Result<Message<Answer>, String> {
        let Some((program, limits)) = isolation() else { return Err("has no process".into()) };
        let mut p = match self.0.take() {
            Some(p) => p,
            None => Start { name: "tract", program, library: None }.process().map_err(|e| e.to_string())?,
        };
        let (time, memory) = (limits.time.unwrap_or(ORACLE_TIME), limits.memory.unwrap_or(ORACLE_MEMORY));
        let answer = p.ask(request, blobs, time, memory).map_err(|death| death.how)?;
        self.0 = Some(p);
        Ok(answer)
    }
}

/// Do engines run in processes of their own?
#[cfg(feature = "tract")]
pub(super) fn is_isolated() -> bool {
    isolation().is_some()
}

/// Opens a model file as a training run is about to, and leaves the optimised graph at `optimised`; `None` where engines run in this process.
/// There are no limits: what is opened is the user's choice.
#[cfg(feature = "ort")]
pub(super) fn open_file(
    path: &Path,
    engine: &super::ort::OrtEngine,
    library: PathBuf,
    optimised: Option<PathBuf>,
) -> Option<Result<(), EngineError>> {
    let request = Request::OpenFile { path: path.to_path_buf(), engine: engine.clone(), optimised };
    Some(once(library, &request)?.map(drop))
}

/// What the ONNX Runtime in use says of itself; `None` where engines run in this process.
#[cfg(feature = "ort")]
pub(super) fn about(library: PathBuf) -> Option<Result<super::ort::About, EngineError>> {
    let answer = once(library, &Request::About)?;
    let odd = || EngineError::NoRuntime("its process gave an answer that makes no sense".into());
    Some(answer.and_then(|reply| if let Reply::About(about) = reply { Ok(about) } else { Err(odd()) }))
}

/// The answer of a process that answers once.
#[cfg(feature = "ort")]
fn once(library: PathBuf, request: &Request) -> Option<Result<Reply, EngineError>> {
    let (program, _) = isolation()?;
    let engine = ChildEngine {
        start: Start { name: super::ort::NAME, program, library: Some(library) },
        limits: Limits { memory: Some(u64::MAX), time: Some(Duration::MAX) },
        process: Rc::default(),
        sessions: Cell::new(0),
    };
    Some(engine.ask(request, &[], 0).map(|(reply, _)| reply))
}

/// What starts an engine's process.
#[derive(Clone)]
struct Start {
    name: &'static str,
    program: Arc<Program>,
    /// The ONNX Runtime that was found.
    library: Option<PathBuf>,
}

struct ChildEngine {
    start: Start,
    limits: Limits,
    process: Rc<RefCell<Option<Process>>>,
    sessions: Cell<u64>,
}

struct Process {
    child: Child,
    to: BufWriter<ChildStdin>,
    from: Receiver<Message<Answer>>,
    /// The end of what the process wrote to its standard error.
    said: Arc<Mutex<Vec<u8>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Engine for ChildEngine {
    fn name(&self) -> &'static str {
        self.start.name
    }

    fn load(&self, model: &[u8], data: Option<ExternalData>) -> Result<Box<dyn Session>, EngineError> {
        self.start()?;
        let session = self.sessions.get();
        self.sessions.set(session + 1);
        let limits = self.limits.for_size(model.len() as u64 + data.map_or(0, |d| d.bytes));
        let root = data.map(|d| d.root.to_path_buf());
        let request = Request::Load { session, engine: self.name().into(), root: root.clone(), most_memory: limits.0 };
        let suspect = Suspect::new(&self.start, model, root, limits);
        let child = ChildSession { suspect, session, process: self.process.clone() };
        child.ask(&request, &[model]).map_err(|e| child.suspect.name_node(e, &Deed::Load))?;
        Ok(Box::new(child))
    }

    fn open(&self, model: &[u8], data: Option<ExternalData>) -> Result<(), EngineError> {
        let size = model.len() as u64 + data.map_or(0, |d| d.bytes);
        let root = data.map(|d| d.root.to_path_buf());
        let limits = self.limits.for_size(size);
        let request = Request::Open { engine: self.name().into(), root: root.clone(), most_memory: limits.0 };
        let answer = self.ask(&request, &[model], size).map(drop);
        answer.map_err(|e| Suspect::new(&self.start, model, root, limits).name_node(e, &Deed::Open))
    }

    fn warm_up(&self) {
        let most_memory = self.limits.for_size(0).0;
        // What comes of it shows when a model is opened.
        let _ = self.ask(&Request::Open { engine: self.name().into(), root: None, most_memory }, &[], 0);
    }
}

impl ChildEngine {
    fn start(&self) -> Result<(), EngineError> {
        if self.process.borrow().is_none() {
            let fail =
                |e: io::Error| EngineError::Load { engine: self.name(), why: format!("its process does not start: {e}") };
            let started = self.start.process().map_err(fail)?;
            *self.process.borrow_mut() = Some(started);
        }
        Ok(())
    }

    /// The answer to a request about a model of so many bytes.
    fn ask(&self, request: &Request, blobs: &[&[u8]], size: u64) -> Result<Message<Reply>, EngineError> {
        self.start()?;
        let (most_memory, most_time) = self.limits.for_size(size);
        ask(&self.process, self.name(), request, blobs, (most_memory, most_time))
    }
}

/// The answer of a process, which is given up when it died.
fn ask(
    process: &RefCell<Option<Process>>,
    engine: &'static str,
    request: &Request,
    blobs: &[&[u8]],
    (most_memory, most_time): (u64, Duration),
) -> Result<Message<Reply>, EngineError> {
    let mut slot = process.borrow_mut();
    let died = |death: Death| EngineError::Died { engine, how: death.how, limit: death.limit };
    let ended = || died(Death { how: "has no process any more".into(), limit: None });
    match slot.as_mut().ok_or_else(ended)?.ask(request, blobs, most_time, most_memory) {
        Ok((answer, blobs)) => Ok((answer?, blobs)),
        Err(death) => {
            *slot = None;
            Err(died(death))
        }
    }
}

/// How a process ended.
struct Death {
    how: String,
    /// What it was ended for, if it did not end by itself.
    limit: Option<Limit>,
}

impl Start {
    fn process(&self) -> io::Result<Process> {
        let mut command = self.program.command();
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(feature = "ort")]
        if let Some(library) = &self.library {
            command.env(super::ort::locate::PATH_VARIABLE, library);
        }
        #[cfg(not(feature = "ort"))]
        let _ = &self.library;
        let name = self.name;
        let mut child = command.spawn()?;
        let taken = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(mut stderr)) = taken else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let (send, from) = channel();
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            while let Ok(answer) = wire::receive_answer(&mut stdout, name) {
                if send.send(answer).is_err() {
                    break;
                }
            }
        });
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut chunk) {
                if let Ok(mut all) = heard.lock() {
                    all.extend_from_slice(&chunk[..n]);
                    let excess = all.len().saturating_sub(1 << 14);
                    all.drain(..excess);
                }
            }
        });
        Ok(Process { child, to: BufWriter::new(stdin), from, said })
    }
}

struct ChildSession {
    suspect: Suspect,
    session: u64,
    process: Rc<RefCell<Option<Process>>>,
}

/// A model that an engine may die of.
struct Suspect {
    start: Start,
    /// `None` for a model that is too large to keep.
    model: Option<Vec<u8>>,
    root: Option<PathBuf>,
    /// Memory and time that it may take.
    limits: (u64, Duration),
    /// Has its node been looked for?
    searched: Cell<bool>,
}

impl Suspect {
    fn new(start: &Start, model: &[u8], root: Option<PathBuf>, limits: (u64, Duration)) -> Suspect {
        let model = (model.len() <= culprit::LARGEST).then(|| model.to_vec());
        Suspect { start: start.clone(), model, root, limits, searched: Cell::new(false) }
    }

    /// Adds to an error that ended the engine the node that did it, where parts of the model show it. What took too long is not tried
    /// again.
    fn name_node(&self, mut e: EngineError, deed: &Deed) -> EngineError {
        if let EngineError::Died { how: said, limit: None | Some(Limit::Memory), .. }
        | EngineError::Panicked { why: said, .. } = &mut e
            && !self.searched.replace(true)
            && let Some(node) = self.model.as_ref().and_then(|m| culprit::find(m, |part| self.dies(part, deed)))
        {
            *said += &format!(", at {node}");
        }
        e
    }

    /// Does a process of its own die of a part of the model? `None` where it refuses the part, or takes too long.
    fn dies(&self, part: &[u8], deed: &Deed) -> Option<bool> {
        let ((most_memory, most_time), engine, root) = (self.limits, self.start.name.to_string(), self.root.clone());
        let most_time = most_time.min(culprit::LONGEST);
        let process = RefCell::new(Some(self.start.process().ok()?));
        let ask =
            |request, blobs: &[&[u8]]| ask(&process, self.start.name, &request, blobs, (most_memory, most_time)).map(drop);
        let load = || ask(Request::Load { session: 0, engine: engine.clone(), root: root.clone(), most_memory }, &[part]);
        let answer = match deed {
            Deed::Open => ask(Request::Open { engine: engine.clone(), root: root.clone(), most_memory }, &[part]),
            Deed::Load => load(),
            Deed::Run(inputs) => {
                load().and_then(|()| ask(Request::Run { session: 0, inputs: wire::heads(inputs) }, &wire::blobs(inputs)))
            }
        };
        match answer {
            Ok(()) => Some(false),
            Err(EngineError::Died { limit: None | Some(Limit::Memory), .. } | EngineError::Panicked { .. }) => Some(true),
            Err(_) => None,
        }
    }
}

/// What an engine did to a model when it died.
enum Deed<'a> {
    Open,
    Load,
    Run(&'a Tensors),
}

impl Session for ChildSession {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        let request = Request::Run { session: self.session, inputs: wire::heads(inputs) };
        let answer = self.ask(&request, &wire::blobs(inputs)).map_err(|e| self.suspect.name_node(e, &Deed::Run(inputs)))?;
        let outputs = match answer {
            (Reply::Outputs(heads), blobs) => wire::tensors(heads, blobs),
            _ => None,
        };
        let how = || "gave an answer that makes no sense".to_string();
        outputs.ok_or_else(|| EngineError::Died { engine: self.suspect.start.name, how: how(), limit: None })
    }
}

impl Drop for ChildSession {
    fn drop(&mut self) {
        if let Some(p) = self.process.borrow_mut().as_mut() {
            let _ = wire::send(&mut p.to, &Request::Drop { session: self.session }, &[]);
        }
    }
}

impl ChildSession {
    fn ask(&self, request: &Request, blobs: &[&[u8]]) -> Result<Message<Reply>, EngineError> {
        ask(&self.process, self.suspect.start.name, request, blobs, self.suspect.limits)
    }
}

impl Process {
    /// The answer; or why the process ended, after which it cannot be asked again.
    fn ask(
        &mut self,
        request: &Request,
        blobs: &[&[u8]],
        most_time: Duration,
        most_memory: u64,
    ) -> Result<Message<Answer>, Death> {
        match wire::send(&mut self.to, request, blobs).map(|()| self.from.recv_timeout(most_time)) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(RecvTimeoutError::Timeout)) => Err(Death {
                how: format!("took more than {} s (--engine-timeout)", most_time.as_secs()),
                limit: Some(Limit::Time),
            }),
            _ => Err(self.death(most_memory)),
        }
    }

    fn death(&mut self, most_memory: u64) -> Death {
        let status = self.child.wait().ok();
        let said = self.said.lock().map(|s| String::from_utf8_lossy(&s).into_owned()).unwrap_or_default();
        let last = last_words(&said).map(|l| format!(": {l}")).unwrap_or_default();
        if status.and_then(|s| s.code()) == Some(TOO_MUCH) {
            let how = format!("used more than {} of memory (--max-memory)", memory::bytes(most_memory));
            return Death { how, limit: Some(Limit::Memory) };
        }
        #[cfg(unix)]
        if let Some(n) = status.and_then(|s| std::os::unix::process::ExitStatusExt::signal(&s)) {
            let name = signal_hook::low_level::signal_name(n).unwrap_or("unknown");
            let why = if n == signal_hook::consts::SIGKILL { ", perhaps for the machine's memory" } else { "" };
            return Death { how: format!("died of signal {n} ({name}{why}){last}"), limit: None };
        }
        let how = format!("ended with status {}{last}", status.and_then(|s| s.code()).unwrap_or(-1));
        Death { how, limit: None }
    }
}

/// Why a process ended, by what it wrote: the message of its panic, else its last line.
fn last_words(said: &str) -> Option<&str> {
    let mut lines = said.lines().map(str::trim).filter(|l| !l.is_empty());
    let panic = lines.clone().skip_while(|l| !l.contains("panicked at")).nth(1);
    panic.or_else(|| lines.next_back())
}

/// The child's loop: it answers requests until there are no more.
pub fn serve() -> u8 {
    let (mut from, mut to) = (BufReader::new(io::stdin().lock()), BufWriter::new(io::stdout().lock()));
    let watch = memory::Watch::start(u64::MAX, |_, _| std::process::exit(TOO_MUCH));
    let mut sessions: HashMap<u64, Box<dyn Session>> = HashMap::new();
    while let Ok((request, mut blobs)) = wire::receive::<Request>(&mut from) {
        let mut outputs = Tensors::new();
        let answer = match request {
            Request::Load { session, engine, root, most_memory } => {
                watch.allow(most_memory);
                load(&engine, &blobs.pop().unwrap_or_default(), root.as_deref()).map(|loaded| {
                    sessions.insert(session, loaded);
                    Reply::Loaded
                })
            }
            Request::Open { engine, root, most_memory } => {
                watch.allow(most_memory);
                open(&engine, blobs.pop().as_deref(), root.as_deref()).map(|()| Reply::Loaded)
            }
            #[cfg(feature = "ort")]
            Request::OpenFile { path, engine, optimised } => {
                engine.optimise_file(&path, optimised.as_deref()).map(|_| Reply::Loaded)
            }
            #[cfg(feature = "ort")]
            Request::About => super::ort::about_here().map(Reply::About),
            Request::Run { session, inputs } => match (sessions.get_mut(&session), wire::tensors(inputs, blobs)) {
                (Some(session), Some(inputs)) => session.run(&inputs).map(|found| {
                    outputs = found;
                    Reply::Outputs(wire::heads(&outputs))
                }),
                _ => Err(EngineError::NoRuntime("no such session".into())),
            },
            Request::Types { known } => {
                watch.allow(ORACLE_MEMORY);
                Ok(Reply::Types(super::oracle::answer(blobs.pop().unwrap_or_default(), &known)))
            }
            Request::Drop { session } => {
                sessions.remove(&session);
                continue;
            }
        };
        if wire::send(&mut to, &answer, &wire::blobs(&outputs)).is_err() {
            return 1;
        }
    }
    0
}

fn load(engine: &str, model: &[u8], root: Option<&Path>) -> Result<Box<dyn Session>, EngineError> {
    named(engine)?.load(model, root.map(|root| ExternalData { root, bytes: 0 }))
}

/// Opens a model; without one, loads the engine.
fn open(engine: &str, model: Option<&[u8]>, root: Option<&Path>) -> Result<(), EngineError> {
    let engine = named(engine)?;
    match model {
        Some(model) => engine.open(model, root.map(|root| ExternalData { root, bytes: 0 })),
        None => {
            engine.warm_up();
            Ok(())
        }
    }
}

/// An engine of this process.
fn named(engine: &str) -> Result<Box<dyn Engine>, EngineError> {
    match engine {
        #[cfg(feature = "tract")]
        super::tract::NAME => Ok(Box::new(super::tract::TractEngine)),
        #[cfg(feature = "ort")]
        super::ort::NAME => Ok(Box::new(super::ort::OrtEngine::default())),
        other => Err(EngineError::NoRuntime(format!("there is no engine `{other}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_death_is_found_in_its_last_words() {
        let panic = "thread 'main' panicked at a.rs:1:2:\nindex out of bounds\nstack backtrace:\n  0: main\nnote: some\n";
        assert_eq!(last_words(panic), Some("index out of bounds"));
        assert_eq!(last_words("loading\nterminate called\n\n"), Some("terminate called"));
        assert_eq!(last_words(""), None);
    }

    #[test]
    fn limits_follow_from_the_model_unless_they_are_given() {
        let (memory, time) = Limits::default().for_size(1 << 30);
        assert_eq!((memory, time), (20 << 30, Duration::from_secs(120 + 1024)));
        let given = Limits { memory: Some(5), time: Some(Duration::from_secs(1)) };
        assert_eq!(given.for_size(1 << 30), (5, Duration::from_secs(1)));
    }
}

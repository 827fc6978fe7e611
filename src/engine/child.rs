//! Engines in a process of their own. What an engine dies of (a wild pointer, memory without end, a loop without one) ends that
//! process and is an error here.
//!
//! The tool starts itself with a hidden first argument and speaks with it through pipes (`wire`). The child watches its own
//! memory: what it holds in RAM, not its address space, which an ONNX Runtime with its threads and arenas takes many times
//! what it uses of. The parent watches the clock. Both limits grow with the model.

use super::wire::{Answer, Request, read_answer, write_answer};
use super::{Engine, EngineError, Session, Tensors};
use crate::engine::memory::{self, parse_size};
use crate::error::Failure;
use ancre_passes::ir::SharedBytes;
use ancre_passes::onnx;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// The hidden first argument.
pub const ARGUMENT: &str = "__engine";

/// Exit status of a child that used too much memory.
const TOO_MUCH: i32 = 77;

/// How much an engine may take. What is `None` follows from the model's size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Time of loading or running a model.
    pub time: Option<Duration>,
}

impl Limits {
    /// What the command line says.
    ///
    /// # Errors
    /// When the size is none.
    pub fn of(memory: Option<&str>, seconds: Option<u64>) -> Result<Limits, Failure> {
        let memory = memory.map(parse_size).transpose()?;
        Ok(Limits { memory, time: seconds.map(Duration::from_secs) })
    }

    /// The limits for a model of so many bytes.
    fn for_size(self, size: u64) -> (u64, Duration) {
        // An engine holds the message, the weights, packed copies of them, activations and their copies; small models may have
        // large activations.
        let memory = self.memory.unwrap_or((4 << 30) + 16 * size);
        let time = self.time.unwrap_or(Duration::from_secs(120 + (size >> 20)));
        (memory, time)
    }
}

/// The program to start, and the limits; unset, engines run in this process.
static PROGRAM: OnceLock<(PathBuf, Limits)> = OnceLock::new();

/// From now on engines run in processes of their own, of this program.
pub fn isolate(limits: Limits) {
    if let Ok(program) = std::env::current_exe() {
        let _ = PROGRAM.set((program, limits));
    }
}

/// The engine in a process of its own, if engines have some.
pub(super) fn engine(name: &'static str, library: Option<PathBuf>) -> Option<Box<dyn Engine>> {
    let (program, limits) = PROGRAM.get()?;
    Some(Box::new(ChildEngine { name, program, limits: *limits, library, process: Rc::default(), sessions: Cell::new(0) }))
}

struct ChildEngine {
    name: &'static str,
    program: &'static Path,
    limits: Limits,
    /// The ONNX Runtime that was found.
    library: Option<PathBuf>,
    process: Rc<RefCell<Option<Process>>>,
    sessions: Cell<u64>,
}

struct Process {
    child: Child,
    to: BufWriter<ChildStdin>,
    from: Receiver<Answer>,
    /// The end of what it wrote to its standard error.
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
        self.name
    }

    fn load(&self, model: &[u8], root: Option<&Path>) -> Result<Box<dyn Session>, EngineError> {
        let start = |e: io::Error| EngineError::Load { engine: self.name, why: format!("its process does not start: {e}") };
        if self.process.borrow().is_none() {
            *self.process.borrow_mut() = Some(self.start().map_err(start)?);
        }
        let session = self.sessions.get();
        self.sessions.set(session + 1);
        let (most_memory, most_time) = self.limits.for_size(model.len() as u64 + external_size(model, root));
        let root = root.map(|r| r.to_string_lossy().into_owned());
        let request = Request::Load { session, engine: self.name.into(), root, most_memory, model: model.to_vec() };
        let child = ChildSession { engine: self.name, session, most_memory, most_time, process: self.process.clone() };
        child.ask(&request)?;
        Ok(Box::new(child))
    }
}

impl ChildEngine {
    fn start(&self) -> io::Result<Process> {
        let mut command = Command::new(self.program);
        command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        #[cfg(feature = "ort")]
        if let Some(library) = &self.library {
            command.env(super::ort::locate::PATH_VARIABLE, library);
        }
        let mut child = command.spawn()?;
        let taken = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(mut stderr)) = taken else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let (send, from) = channel();
        let name = self.name;
        std::thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            while let Ok(answer) = read_answer(&mut stdout, name) {
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

/// Bytes of the files that a model's external data lies in. A model that has some is small itself.
fn external_size(model: &[u8], root: Option<&Path>) -> u64 {
    const KEY: &[u8] = b"location";
    if model.len() > 16 << 20 || !model.windows(KEY.len()).any(|w| w == KEY) {
        return 0;
    }
    let Ok(g) = onnx::read(&SharedBytes::new(model.to_vec()), root) else { return 0 };
    let root = root.unwrap_or(Path::new(""));
    onnx::external_files(&g).keys().filter_map(|l| Some(root.join(l).metadata().ok()?.len())).sum()
}

struct ChildSession {
    engine: &'static str,
    session: u64,
    most_memory: u64,
    most_time: Duration,
    process: Rc<RefCell<Option<Process>>>,
}

impl Session for ChildSession {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        self.ask(&Request::Run { session: self.session, inputs: inputs.clone() })
    }
}

impl Drop for ChildSession {
    fn drop(&mut self) {
        if let Some(p) = self.process.borrow_mut().as_mut() {
            let _ = Request::Drop { session: self.session }.write(&mut p.to);
        }
    }
}

impl ChildSession {
    fn ask(&self, request: &Request) -> Answer {
        let mut slot = self.process.borrow_mut();
        let died = |how: String| Err(EngineError::Died { engine: self.engine, how });
        let Some(p) = slot.as_mut() else { return died("its process has ended".into()) };
        let asked = request.write(&mut p.to);
        let how = match asked.map(|()| p.from.recv_timeout(self.most_time)) {
            Ok(Ok(answer)) => return answer,
            Ok(Err(RecvTimeoutError::Timeout)) => {
                format!("took more than {} s (--engine-timeout)", self.most_time.as_secs())
            }
            _ => self.death(p),
        };
        *slot = None;
        died(how)
    }

    /// What the process ended of.
    fn death(&self, p: &mut Process) -> String {
        let status = p.child.wait().ok();
        let said = p.said.lock().map(|s| String::from_utf8_lossy(&s).into_owned()).unwrap_or_default();
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).map(|l| format!(": {}", l.trim())).unwrap_or_default();
        if status.and_then(|s| s.code()) == Some(TOO_MUCH) {
            return format!("used more than {} of memory (--max-memory)", memory::bytes(self.most_memory));
        }
        #[cfg(unix)]
        if let Some(n) = status.and_then(|s| std::os::unix::process::ExitStatusExt::signal(&s)) {
            let name = match n {
                4 => " (illegal instruction)",
                6 => " (aborted)",
                7 | 10 => " (bus error)",
                8 => " (division by zero)",
                9 => " (killed, perhaps for the machine's memory)",
                11 => " (segmentation fault)",
                _ => "",
            };
            return format!("died of signal {n}{name}{last}");
        }
        format!("ended with status {}{last}", status.and_then(|s| s.code()).unwrap_or(-1))
    }
}

/// What the child does: it answers until there are no more requests.
pub fn serve() -> u8 {
    let (mut from, mut to) = (BufReader::new(io::stdin().lock()), BufWriter::new(io::stdout().lock()));
    let watch = memory::Watch::start(u64::MAX, |_, _| std::process::exit(TOO_MUCH));
    let mut sessions: HashMap<u64, Box<dyn Session>> = HashMap::new();
    while let Ok(Some(request)) = Request::read(&mut from) {
        let answer = match request {
            Request::Load { session, engine, root, most_memory, model } => {
                watch.allow(most_memory);
                load(&engine, &model, root.as_deref().map(Path::new)).map(|loaded| {
                    sessions.insert(session, loaded);
                    Tensors::new()
                })
            }
            Request::Run { session, inputs } => match sessions.get_mut(&session) {
                Some(s) => s.run(&inputs),
                None => Err(EngineError::NoRuntime("no such session".into())),
            },
            Request::Drop { session } => {
                sessions.remove(&session);
                continue;
            }
        };
        if write_answer(&mut to, &answer).and_then(|()| to.flush()).is_err() {
            return 1;
        }
    }
    0
}

fn load(engine: &str, model: &[u8], root: Option<&Path>) -> Result<Box<dyn Session>, EngineError> {
    match engine {
        #[cfg(feature = "tract")]
        super::tract::NAME => super::tract::TractEngine.load(model, root),
        #[cfg(feature = "ort")]
        super::ort::NAME => super::ort::OrtEngine::default().load(model, root),
        other => Err(EngineError::NoRuntime(format!("there is no engine `{other}`"))),
    }
}

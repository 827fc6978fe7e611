//! What the tests share: the runtime, the tool as a process, random numbers, arrays in files.

pub mod nets;

use ancre_passes::analysis::residual::Chain;
use ancre_passes::contract::{Record, StateRecord, States};
use ancre_passes::ir::{DType, Graph, RouterSpec};
use ancre_passes::onnx;
use ancre_passes::transform::route::{RouteOptions, route_skips};
use ancre_rewrite::engine::ort::{OrtEngine, OrtSession, install};
use ancre_rewrite::engine::{EngineError, Session, Tensors, ort, random_inputs};
use ancre_rewrite::io::files;
use ancre_rewrite::io::tensor::NpTensor;
use ndarray::{ArrayD, OwnedRepr};
use ndarray_npy::{NpzReader, NpzWriter};
use safetensors::tensor::{Dtype, TensorView};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The library all tests use: one that is installed, else the newest wheel. A test that cannot have one fails.
pub fn runtime() -> &'static Path {
    static RUNTIME: OnceLock<PathBuf> = OnceLock::new();
    RUNTIME.get_or_init(|| match ort::locate() {
        Ok(found) => found.path,
        Err(missing) => install::install(None, false)
            .unwrap_or_else(|e| panic!("the tests need an ONNX Runtime; {missing}; and fetching one failed: {e}")),
    })
}

/// Routes a graph's chains; the routers.
pub fn route(g: &mut Graph, chains: &[Chain], o: &RouteOptions) -> Vec<RouterSpec> {
    route_skips(g, chains, o).unwrap();
    g.routers.values().cloned().collect()
}

/// Loads a model in ONNX Runtime, one thread.
pub fn open(model: &[u8]) -> Result<OrtSession, String> {
    runtime();
    OrtEngine { threads: Some(1), ..OrtEngine::default() }.open(model, None).map_err(|e| e.to_string())
}

/// Loads a model file in ONNX Runtime, one thread.
pub fn open_file(path: &Path) -> Opened {
    runtime();
    let engine = OrtEngine { threads: Some(1), ..OrtEngine::default() };
    let session = engine.open_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let first = first_state(path).into_iter().filter(|(name, _)| session.inputs().contains(name)).collect();
    Opened { session, first }
}

/// A session that is fed the first state where its graph asks for it.
pub struct Opened {
    session: OrtSession,
    first: Tensors,
}

impl Opened {
    /// The session, which is fed what it is given.
    pub fn bare(self) -> OrtSession {
        self.session
    }
}

impl Deref for Opened {
    type Target = OrtSession;

    fn deref(&self) -> &OrtSession {
        &self.session
    }
}

impl Session for Opened {
    fn run(&mut self, feeds: &Tensors) -> Result<Tensors, EngineError> {
        let mut all = self.first.clone();
        all.extend(feeds.clone());
        self.session.run(&all)
    }
}

/// The state that a training graph starts from: what lies in it, then what lies beside it.
pub fn first_state(train: &Path) -> Tensors {
    let (g, _) = files::read_model(train).unwrap();
    let states = States::read(&g).unwrap().unwrap_or_default().0;
    let inside = |s: &StateRecord| Some((s.input.clone(), g.initializer(g.find(&s.input)?)?.clone()));
    let inside = states.iter().filter_map(inside).map(|(name, t)| (name, NpTensor::from_constant(&t).unwrap()));
    let mut first: Tensors = inside.collect();
    if first.len() < states.len() {
        // A graph that takes the same state lies beside the same files.
        let name = text(train).replace(".eval.", ".train.").replace(".infer.", ".train.");
        first.extend(files::first_state(Path::new(&name), &g).unwrap().unwrap_or_default().1);
    }
    first
}

/// Random inputs of a training graph but for its state, for a batch of 2.
pub fn random_data(train: &Path) -> Tensors {
    let (g, _) = files::read_model(train).unwrap();
    let sizes = random_inputs::sizes(&g, &random_inputs::Sizes::new()).remove(0);
    without_state(&g, random_inputs::random_inputs(&g, &sizes, 3).unwrap())
}

/// What of these feeds is no state of a graph.
pub fn without_state(g: &Graph, mut feeds: Tensors) -> Tensors {
    let states = States::read(g).unwrap().unwrap_or_default().0;
    feeds.retain(|name, _| !states.iter().any(|s| s.input == *name));
    feeds
}

/// One step of a training loop: outputs named `X.next` become the state that is fed to `X`, the others come back.
pub fn advance(session: &mut impl Session, mut feeds: Tensors, state: &mut Tensors) -> Tensors {
    feeds.extend(state.clone());
    let (next, rest): (Tensors, Tensors) =
        session.run(&feeds).unwrap().into_iter().partition(|(name, _)| name.ends_with(".next"));
    state.extend(next.into_iter().map(|(name, t)| (name.trim_end_matches(".next").to_string(), t)));
    rest
}

/// The ONNX file of a graph.
pub fn emit(g: &Graph) -> Vec<u8> {
    onnx::emit(g).unwrap().to_bytes().unwrap()
}

// ---- the tool ---------------------------------------------------------------------------------------------------------

/// What a run of the tool said.
pub struct Ran {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Its standard output as the one JSON document it must be.
    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("stdout is no JSON document ({e}): {}", self.out))
    }
}

/// Runs the tool. A panic is never an acceptable answer.
pub fn tool<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Ran {
    tool_where(&[], arguments)
}

/// Runs the tool with variables of its environment set.
pub fn tool_where<S: AsRef<std::ffi::OsStr>>(variables: &[(&str, &str)], arguments: &[S]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ancre-rewrite"));
    command.envs(variables.iter().copied());
    let out = command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the tool speaks UTF-8");
    let ran = Ran { status: out.status.code().unwrap_or(-1), out: text(out.stdout), err: text(out.stderr) };
    let given: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    assert!(!ran.err.contains("panicked") && ran.status >= 0, "{given:?} crashed: {}", ran.err);
    ran
}

/// Runs the tool, which must succeed.
pub fn tool_ok<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Ran {
    let ran = tool(arguments);
    let given: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
    assert_eq!(ran.status, 0, "{given:?}: {}{}", ran.out, ran.err);
    ran
}

/// Names of all files below a folder, hidden ones too, sorted.
pub fn listing(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        if entry.path().is_dir() {
            names.extend(listing(&entry.path()));
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    names
}

/// A file of the test data.
pub fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

/// The models that come with the tool: not what it wrote beside them, which the README's first command does.
pub fn models() -> Vec<PathBuf> {
    let all = onnx_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models"));
    assert!(all.len() > 20, "{} models", all.len());
    all
}

/// One of the models that come with the tool: `gpt2`.
pub fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(format!("{name}.onnx"))
}

/// The `.onnx` files of a folder that are no rewritten models, sorted.
pub fn onnx_files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().flatten().map(|e| e.path()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "onnx") && !text(p).contains(".ancre."));
    all.sort();
    all
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_string()
}

// ---- numbers ----------------------------------------------------------------------------------------------------------

/// Random numbers, the same in every run (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub fn normals(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.normal()).collect()
    }
}

/// A tensor of a float type.
pub fn floats(dtype: DType, shape: &[usize], values: &[f64]) -> NpTensor {
    NpTensor::from_f64s(dtype, shape, values).expect("as many values as the shape asks for")
}

/// Largest |a − b|.
pub fn max_abs(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// √Σ v².
pub fn norm(v: &[f64]) -> f64 {
    v.iter().map(|v| v * v).sum::<f64>().sqrt()
}

// ---- arrays in files --------------------------------------------------------------------------------------------------

/// Reads all arrays of an `.npz` file.
pub fn read_npz(path: &Path) -> Tensors {
    let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut npz = NpzReader::new(file).unwrap();
    let mut out = Tensors::new();
    for name in npz.names().unwrap() {
        let key = name.trim_end_matches(".npy").to_string();
        macro_rules! read {
            ($t:ty, $dtype:ident) => {
                npz.by_name::<OwnedRepr<$t>, ndarray::IxDyn>(&name).ok().map(|a: ArrayD<$t>| {
                    let values: Vec<f64> = a.iter().map(|v| *v as u8 as f64).collect();
                    floats(DType::$dtype, a.shape(), &values)
                })
            };
            ($t:ty, $dtype:ident, wide) => {
                npz.by_name::<OwnedRepr<$t>, ndarray::IxDyn>(&name).ok().map(|a: ArrayD<$t>| {
                    let bytes = a.iter().flat_map(|v| v.to_le_bytes()).collect();
                    NpTensor::new(DType::$dtype, a.shape(), bytes).unwrap()
                })
            };
        }
        let tensor = read!(f32, F32, wide).or_else(|| read!(i64, I64, wide)).or_else(|| read!(f64, F64, wide));
        let tensor = tensor.or_else(|| read!(bool, Bool));
        out.insert(key, tensor.unwrap_or_else(|| panic!("{}: `{name}` has an unexpected type", path.display())));
    }
    out
}

/// Writes float32 arrays as an `.npz` file.
pub fn write_npz(path: &Path, arrays: &[(String, Vec<usize>, Vec<f32>)]) {
    let mut npz = NpzWriter::new(std::fs::File::create(path).unwrap());
    for (name, shape, values) in arrays {
        let array = ArrayD::from_shape_vec(shape.clone(), values.clone()).unwrap();
        npz.add_array(name.as_str(), &array).unwrap();
    }
    npz.finish().unwrap();
}

/// Writes a `.safetensors` file, with metadata if there is any.
pub fn write_safetensors(path: &Path, tensors: &Tensors, metadata: Option<(&str, &str)>) {
    let views = tensors.iter().map(|(name, t)| {
        let dtype = match t.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::I64 => Dtype::I64,
            other => panic!("`{name}` is of type {other}"),
        };
        (name, TensorView::new(dtype, t.shape().to_vec(), t.bytes()).unwrap())
    });
    let metadata = metadata.map(|(key, value)| [(key.to_string(), value.to_string())].into());
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), metadata, path).unwrap();
}

//! ONNX Runtime: a stock library of the user's, found and loaded at run time.

mod blocks;
pub mod device;
pub mod install;
pub(crate) mod library;
pub mod locate;
pub(crate) mod stepper;

pub use self::locate::{Found, Runtime, cache_dir, locate};
pub(super) use library::about_here;
pub(crate) use library::{About, about};

use self::device::{Device, Optimization};
use super::{Engine, EngineError, ExternalData, Session, Tensors, child};
use crate::io::tensor::{NpTensor, le_bytes, with_type};
use ancre_passes::ir::{DType, Graph};
use ancre_passes::onnx;
use onnx_protobuf::{Message, ModelProto};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::SessionInputValue;
use ort::session::builder::SessionBuilder;
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorElementType};
use std::borrow::Cow;
use std::fmt::{Debug, Display};
use std::path::Path;
use std::sync::OnceLock;

pub(super) const NAME: &str = "ort";

/// The process's ONNX Runtime, loaded at the first call. Fails when no library is found or the one found cannot be loaded.
pub fn environment() -> Result<&'static Environment, EngineError> {
    static LOADED: OnceLock<Result<Environment, EngineError>> = OnceLock::new();
    LOADED.get_or_init(|| load_library(&locate()?)).as_ref().map_err(Clone::clone)
}

fn load_library(runtime: &Runtime) -> Result<Environment, EngineError> {
    let fail = |why: String| runtime.unusable(&why);
    let environment = ort::init_from(&runtime.path)
        .map_err(|e| fail(e.to_string()))?
        .with_telemetry(false)
        .build()
        .map_err(|e| fail(e.to_string()))?;
    environment.set_log_level(LogLevel::Error);
    Ok(environment)
}

/// How sessions are set up.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OrtEngine {
    /// Threads inside an operator; `None` leaves it to ONNX Runtime.
    pub threads: Option<usize>,
    /// How far ONNX Runtime may rewrite the graph before running it.
    pub level: Optimization,
    /// Use kernels whose results do not depend on timing.
    pub deterministic: bool,
    /// Where the graph runs.
    pub device: Device,
    /// Keep freed memory for the next step.
    pub arena: bool,
    /// Lay a step's memory out in one block, by the step before. Beside what the arena keeps that takes the memory of the
    /// activations twice.
    pub memory_pattern: bool,
    /// Copy constant matrices into the layout that the kernels like best, once for each operator that reads them.
    pub prepack: bool,
    /// Keep numbers below float32's normal ones. Moments of weights without gradients decay to such, stay there, and slow kernels down.
    pub denormals: bool,
    /// Let convolutions compute on channels in blocks, which takes operators of ONNX Runtime's own.
    pub blocks: bool,
    /// Let CUDA round the operands of products to TF32.
    pub tf32: bool,
    /// Most bytes of the GPU's memory to take.
    pub gpu_memory: Option<usize>,
}

/// Of model files of at most so many bytes, 256 MiB, the optimised graph is written.
const REOPENED: u64 = 1 << 28;

impl Default for OrtEngine {
    fn default() -> OrtEngine {
        OrtEngine {
            threads: None,
            level: Optimization::All,
            deterministic: true,
            device: Device::Cpu,
            arena: true,
            memory_pattern: true,
            prepack: true,
            denormals: true,
            blocks: false,
            tf32: false,
            gpu_memory: None,
        }
    }
}

impl OrtEngine {
    /// Loads a model that is in memory. Fails when no runtime is there or it refuses the model.
    pub fn open(&self, model: &[u8], root: Option<&Path>) -> Result<OrtSession, EngineError> {
        let mut builder = self.builder()?;
        if let Some(root) = root {
            let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
            builder = builder
                .with_config_entry("session.model_external_initializers_file_folder_path", root.to_string_lossy())
                .map_err(load_error)?;
        }
        OrtSession::new(builder.commit_from_memory(model).map_err(|e| name_node(load_error(e), model))?)
    }

    /// Loads a model file; ONNX Runtime maps its external data. Fails when no runtime is there or it refuses the model.
    pub fn open_file(&self, model: &Path) -> Result<OrtSession, EngineError> {
        self.optimise_file(model, None)
    }

    /// As [`OrtEngine::open_file`], and writes the optimised graph, which this ONNX Runtime opens faster than the model.
    pub(super) fn optimise_file(&self, model: &Path, optimised: Option<&Path>) -> Result<OrtSession, EngineError> {
        let mut builder = self.builder()?;
        if let Some(path) = optimised {
            builder = builder.with_optimized_model_path(path).map_err(load_error)?;
        }
        OrtSession::new(builder.commit_from_file(model).map_err(load_error)?)
    }

    /// As [`OrtEngine::open`], after a process of its own has opened the model.
    pub fn open_safely(&self, model: &[u8], root: Option<&Path>) -> Result<OrtSession, EngineError> {
        let elsewhere = child::engine(NAME, Some(locate()?.path));
        elsewhere.map_or(Ok(()), |e| e.open(model, root.map(|root| ExternalData { root, bytes: 0 })))?;
        self.open(model, root)
    }

    /// As [`OrtEngine::open_file`], in a process of its own first where the tool runs engines in those: what would end this process
    /// is an error. `g` is what the file holds.
    pub fn open_file_safely(&self, model: &Path, g: &Graph) -> Result<OrtSession, EngineError> {
        if let Some(session) = self.open_in_blocks(g) {
            return Ok(session);
        }
        // The optimised graph refers to external data by their names, beside itself.
        let is_whole = onnx::external_files(g).is_empty() && model.metadata().is_ok_and(|m| m.len() <= REOPENED);
        self.open_optimised(model, is_whole)
    }

    /// As [`OrtEngine::open_safely`], for a graph that no file holds.
    pub fn open_graph_safely(&self, g: &Graph, root: Option<&Path>) -> Result<OrtSession, EngineError> {
        if let Some(session) = self.open_in_blocks(g) {
            return Ok(session);
        }
        let fail = |e: onnx::EmitError| EngineError::Load { engine: NAME, why: e.to_string() };
        self.open_safely(&onnx::emit(g).and_then(|e| e.to_bytes()).map_err(fail)?, root)
    }

    /// Opens a model file in a process of its own first. That process leaves its optimised graph, so that ONNX Runtime optimises once,
    /// if the file `is_whole`.
    fn open_optimised(&self, model: &Path, is_whole: bool) -> Result<OrtSession, EngineError> {
        let library = locate()?.path;
        let place = if is_whole && self.device == Device::Cpu { tempfile::tempdir().ok() } else { None };
        if let Some(optimised) = place.as_ref().map(|dir| dir.path().join("optimised.onnx"))
            && let Some(Ok(())) = child::open_file(model, self, library.clone(), Some(optimised.clone()))
        {
            let as_it_is = OrtEngine { level: Optimization::None, ..self.clone() };
            return as_it_is.open_file(&optimised).or_else(|_| self.open_file(model));
        }
        match child::open_file(model, self, library, None) {
            Some(Err(e)) => Err(e),
            _ => self.open_file(model),
        }
    }

    fn builder(&self) -> Result<SessionBuilder, EngineError> {
        let environment = environment()?;
        let set_up = || -> ort::Result<SessionBuilder> {
            let mut builder = ort::session::Session::builder(environment)?
                .with_log_level(LogLevel::Error)?
                .with_optimization_level(self.level.of_ort())?
                .with_deterministic_compute(self.deterministic)?
                .with_memory_pattern(self.memory_pattern)?;
            if !self.prepack {
                builder = builder.with_config_entry("session.disable_prepacking", "1")?;
            }
            if !self.denormals {
                builder = builder.with_config_entry("session.set_denormal_as_zero", "1")?;
            }
            if let Some(threads) = self.threads {
                builder = builder.with_intra_threads(threads)?;
            }
            Ok(builder.with_execution_providers(device::providers(self))?)
        };
        set_up().map_err(load_error)
    }
}

impl Engine for OrtEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, model: &[u8], data: Option<ExternalData>) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(self.open(model, data.map(|d| d.root))?))
    }

    /// Types are checked and kernels are looked up. What makes a graph faster is left out.
    fn open(&self, model: &[u8], data: Option<ExternalData>) -> Result<(), EngineError> {
        let engine = OrtEngine { level: Optimization::None, threads: Some(1), ..self.clone() };
        engine.open(model, data.map(|d| d.root)).map(drop)
    }

    fn warm_up(&self) {
        let _ = environment();
    }
}

fn load_error(e: impl Display) -> EngineError {
    blame(&e.to_string()).unwrap_or_else(|| EngineError::Load { engine: NAME, why: e.to_string() })
}

pub(super) fn run_error(e: impl Display) -> EngineError {
    EngineError::Run { engine: NAME, why: e.to_string() }
}

/// The operator that ONNX Runtime has no kernel or schema for, if that is what the message says: `Could not find an
/// implementation for Trilu(14) node with name 'n'`, `custom:Strange(-1) is not a registered function/op`.
fn blame(message: &str) -> Option<EngineError> {
    let is_word = |c: char| c.is_alphanumeric() || "._:".contains(c);
    let after = |marker: &str| message.split_once(marker).map(|(_, rest)| rest.trim_start());
    let before = |marker: &str| message.split_once(marker).and_then(|(text, _)| text.split_whitespace().next_back());
    let operator = after("implementation for ")
        .or_else(|| after("No Op registered for "))
        .or_else(|| before(" is not a registered function/op"))?;
    let operator = operator.split(|c| !is_word(c)).next()?.replace(':', ".");
    let node = after("with name '").and_then(|r| r.split_once('\'')).map(|(name, _)| name.to_string());
    Some(EngineError::Unsupported { engine: NAME, operator, node: node.unwrap_or_default(), why: message.to_string() })
}

/// Adds the node to an error that names only an operator: the first node of the model that applies the operator.
fn name_node(e: EngineError, model: &[u8]) -> EngineError {
    let EngineError::Unsupported { engine, operator, node, why } = e else { return e };
    let wanted = operator.rsplit('.').next().unwrap_or_default();
    let found = || {
        let graph = ModelProto::parse_from_bytes(model).ok()?.graph.into_option()?;
        let node = graph.node.into_iter().find(|n| n.op_type == wanted)?;
        if node.name.is_empty() { node.output.into_iter().next() } else { Some(node.name) }
    };
    let node = if node.is_empty() { found().unwrap_or_default() } else { node };
    EngineError::Unsupported { engine, operator, node, why }
}

/// A model loaded in ONNX Runtime.
pub struct OrtSession {
    pub(super) session: ort::session::Session,
    pub(super) required: Vec<String>,
    pub(super) optional: Vec<String>,
    /// Do its convolutions compute on channels in blocks, which its file does not say?
    pub(crate) in_blocks: bool,
}

impl OrtSession {
    fn new(session: ort::session::Session) -> Result<OrtSession, EngineError> {
        let required = session.inputs().iter().map(|i| i.name().to_string()).collect();
        let optional = session.overridable_initializers().iter().map(|i| i.name().to_string()).collect();
        Ok(OrtSession { session, required, optional, in_blocks: false })
    }

    /// Inputs that must be fed.
    pub fn inputs(&self) -> &[String] {
        &self.required
    }

    /// Inputs with a default.
    pub fn optional_inputs(&self) -> &[String] {
        &self.optional
    }

    /// Names of the outputs.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.session.outputs().iter().map(|o| o.name())
    }

    fn check(&self, fed: &Tensors) -> Result<(), EngineError> {
        let fail = |name: &str, why: &str| Err(EngineError::Input { name: name.into(), why: why.into() });
        if let Some(name) = self.required.iter().find(|name| !fed.contains_key(*name)) {
            return fail(name, "the model needs it and it was not fed");
        }
        match fed.keys().find(|name| !self.required.contains(name) && !self.optional.contains(name)) {
            Some(name) => fail(name, "the model has no such input"),
            None => Ok(()),
        }
    }
}

impl Session for OrtSession {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        self.check(inputs)?;
        // Alive until the outputs are read: an output that is an input as it came shares its memory.
        let fed = inputs.iter().map(|(name, t)| Ok((name, to_ort(name, t)?))).collect::<Result<Vec<_>, EngineError>>()?;
        let fed: Vec<(Cow<str>, SessionInputValue)> = fed.iter().map(|(name, v)| (name.as_str().into(), v.into())).collect();
        let results = self.session.run(fed).map_err(run_error)?;
        let named = results.iter().filter(|(name, _)| !name.is_empty());
        named.map(|(name, v)| Ok((name.to_string(), from_ort(name, &v)?))).collect()
    }
}

/// ONNX Runtime's value from our tensor.
pub(super) fn to_ort(name: &str, t: &NpTensor) -> Result<DynValue, EngineError> {
    fn make<T: PrimitiveTensorElementType + Debug + Clone + 'static>(
        shape: &[usize],
        data: Vec<T>,
    ) -> ort::Result<DynValue> {
        Tensor::from_array((shape.to_vec(), data)).map(Tensor::into_dyn)
    }
    macro_rules! elements {
        ($t:ty) => {
            t.bytes().as_chunks::<{ size_of::<$t>() }>().0.iter().map(|c| <$t>::from_le_bytes(*c)).collect::<Vec<$t>>()
        };
    }
    let fail = |why: String| EngineError::Input { name: name.into(), why };
    let value = match t.dtype() {
        DType::F16 => make(t.shape(), elements!(half::f16)),
        DType::BF16 => make(t.shape(), elements!(half::bf16)),
        DType::Bool => make(t.shape(), t.bytes().iter().map(|b| *b != 0).collect::<Vec<bool>>()),
        other => with_type!(
            other,
            T => make(t.shape(), elements!(T)),
            return Err(fail(format!("elements of type {other} cannot be fed")))
        ),
    };
    value.map_err(|e| fail(e.to_string()))
}

/// Our tensor from ONNX Runtime's value.
pub(super) fn from_ort(name: &str, v: &DynValue) -> Result<NpTensor, EngineError> {
    let fail = |why: String| EngineError::Run { engine: NAME, why: format!("output `{name}`: {why}") };
    let Some(ty) = v.dtype().tensor_type() else { return Err(fail("it is no tensor".into())) };
    macro_rules! read {
        ($t:ty, $dtype:ident) => {{
            let (shape, data) = v.try_extract_tensor::<$t>().map_err(|e| fail(e.to_string()))?;
            (DType::$dtype, shape, le_bytes!($t, data))
        }};
    }
    let (dtype, shape, data) = match ty {
        TensorElementType::Float32 => read!(f32, F32),
        TensorElementType::Float64 => read!(f64, F64),
        TensorElementType::Float16 => read!(half::f16, F16),
        TensorElementType::Bfloat16 => read!(half::bf16, BF16),
        TensorElementType::Int8 => read!(i8, I8),
        TensorElementType::Int16 => read!(i16, I16),
        TensorElementType::Int32 => read!(i32, I32),
        TensorElementType::Int64 => read!(i64, I64),
        TensorElementType::Uint8 => read!(u8, U8),
        TensorElementType::Uint16 => read!(u16, U16),
        TensorElementType::Uint32 => read!(u32, U32),
        TensorElementType::Uint64 => read!(u64, U64),
        TensorElementType::Bool => {
            let (shape, data) = v.try_extract_tensor::<bool>().map_err(|e| fail(e.to_string()))?;
            (DType::Bool, shape, data.iter().map(|b| *b as u8).collect())
        }
        other => return Err(fail(format!("elements of type {other:?} cannot be read"))),
    };
    let shape: Vec<usize> = shape.iter().map(|d| *d as usize).collect();
    NpTensor::new(dtype, &shape, data).ok_or_else(|| fail("its size and shape differ".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::samples;

    /// The engine, or `None` with a notice where no library is installed.
    fn engine() -> Option<OrtEngine> {
        match environment() {
            Ok(_) => Some(OrtEngine::default()),
            Err(e) => {
                eprintln!("skipped: {e}");
                None
            }
        }
    }

    #[test]
    fn it_does_what_every_engine_does() {
        let Some(engine) = engine() else { return };
        samples::overridable(&engine);
        samples::batches(&engine);
        samples::handed_on(&engine);
        samples::one_name(&engine);
        samples::wrong_inputs(&engine);
        samples::unknown_operator(&engine);
        samples::shapes(&engine);
        samples::running_sums_of_shapes(&engine);
        samples::slice_to_the_end(&engine);
        samples::external(&engine);
    }

    #[test]
    fn an_optimised_graph_opens_as_it_is_and_computes_the_same() {
        let Some(engine) = engine() else { return };
        let dir = tempfile::tempdir().unwrap();
        let [model, optimised] = ["model.onnx", "optimised.onnx"].map(|name| dir.path().join(name));
        std::fs::write(&model, samples::sum()).unwrap();
        let mut first = engine.optimise_file(&model, Some(&optimised)).unwrap();
        let mut second = OrtEngine { level: Optimization::None, ..engine }.open_file(&optimised).unwrap();
        assert_eq!((first.inputs(), first.optional_inputs()), (second.inputs(), second.optional_inputs()));
        let feeds = Tensors::from([("x".to_string(), NpTensor::f32s(&[1, 2], &[1.0, 2.0]).unwrap())]);
        assert_eq!(first.run(&feeds).unwrap(), second.run(&feeds).unwrap());
    }

    #[test]
    fn sixteen_bit_floats_pass_through() {
        let Some(_) = engine() else { return };
        for dtype in [DType::F16, DType::BF16] {
            let t = NpTensor::from_f64s(dtype, &[2], &[1.5, -2.0]).unwrap();
            assert_eq!(from_ort("t", &to_ort("t", &t).unwrap()).unwrap(), t);
        }
    }

    #[test]
    fn a_missing_kernel_is_blamed_on_its_operator() {
        let text = "Could not find an implementation for Trilu(14) node with name 'mask/Trilu'";
        match blame(text) {
            Some(EngineError::Unsupported { operator, node, .. }) => {
                assert_eq!((operator.as_str(), node.as_str()), ("Trilu", "mask/Trilu"));
            }
            other => panic!("{other:?}"),
        }
        match blame("Fatal error: custom:Strange(-1) is not a registered function/op") {
            Some(EngineError::Unsupported { operator, .. }) => assert_eq!(operator, "custom.Strange"),
            other => panic!("{other:?}"),
        }
        assert!(blame("out of memory").is_none());
    }
}

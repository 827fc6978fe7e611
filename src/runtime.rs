//! `runtime`: which ONNX Runtime is used; fetch one.

use crate::cli::RuntimeArgs;
use crate::error::Failure;

/// Runs `runtime`; returns what goes to stdout.
#[cfg(feature = "ort")]
pub fn runtime(a: &RuntimeArgs) -> Result<String, Failure> {
    use crate::cli::RuntimeCommand;
    let json = match &a.command {
        None => a.json,
        Some(RuntimeCommand::Show { json }) => *json,
        Some(RuntimeCommand::Install { cuda, version, json }) => {
            with_library::fetch(version.as_deref(), *cuda)?;
            *json
        }
    };
    with_library::show(json)
}

/// Runs `runtime`. Fails always: the tool was built without it.
#[cfg(not(feature = "ort"))]
pub fn runtime(_: &RuntimeArgs) -> Result<String, Failure> {
    Err(Failure::input("this build of ancre-rewrite has no ONNX Runtime support (feature `ort`)"))
}

#[cfg(feature = "ort")]
mod with_library {
    use crate::engine::EngineError;
    use crate::engine::ort::device::{Device, without_cuda};
    use crate::engine::ort::locate::{self, Found};
    use crate::engine::ort::{OrtEngine, install, library};
    use crate::error::Failure;
    use crate::io::lines::Lines;
    use ancre_passes::ir::{Attrs, DType, Graph, Op, TensorType};
    use ancre_passes::onnx;
    use serde_json::json;
    use std::path::Path;

    fn failure(e: EngineError) -> Failure {
        Failure::check(e.to_string())
    }

    /// The report on the library in use.
    pub(super) fn show(as_json: bool) -> Result<String, Failure> {
        let runtime = locate::locate().map_err(failure)?;
        let version = library::version(&runtime).map_err(failure)?;
        let providers = library::providers().map_err(failure)?;
        // Where a graph does not run on CUDA, why not.
        let cuda = cuda().map_err(failure)?;
        if as_json {
            let cuda = json!({"works": cuda.is_ok(), "reason": cuda.as_ref().err()});
            let found = runtime.found.name();
            let report =
                json!({"library": runtime.path, "version": version, "providers": providers, "found": found, "cuda": cuda});
            return Ok(format!("{report}\n"));
        }
        let mut out = Lines::new(11);
        out.put("library", runtime.path.display());
        out.put("version", version);
        out.put("providers", providers.join(", "));
        out.put("found by", runtime.found);
        out.put("CUDA", cuda.map_or_else(|why| format!("does not work: {why}"), |()| "works".into()));
        Ok(out.text)
    }

    /// Tries the CUDA provider on a graph of one node.
    fn cuda() -> Result<Result<(), String>, EngineError> {
        if let Some(why) = without_cuda()? {
            return Ok(Err(why));
        }
        let mut g = Graph::default();
        let ty = TensorType::fixed(DType::F32, &[1]);
        let x = g.add_input("x", ty.clone().into(), None);
        let node = g.add_op("relu", Op::new("Relu", Attrs::new()), &[Some(x)]);
        let y = g.push_result(node, "y", ty.into());
        g.add_output(y, None);
        let model = onnx::emit(&g).and_then(|e| e.to_bytes());
        let model = model.map_err(|e| EngineError::Load { engine: "ort", why: e.to_string() })?;
        let engine = OrtEngine { device: Device::Cuda(0), ..OrtEngine::default() };
        Ok(engine.open(&model, None).map(|_| ()).map_err(|e| {
            let text = e.to_string();
            let short = text.lines().next().unwrap_or_default().to_string();
            if gpu_is_seen() { short } else { "this machine shows no NVIDIA GPU (its driver is not loaded)".into() }
        }))
    }

    pub(super) fn fetch(version: Option<&str>, cuda: bool) -> Result<(), Failure> {
        let package = if cuda { "onnxruntime-gpu" } else { "onnxruntime" };
        eprintln!("fetching {package} {} with pip …", version.unwrap_or("(the newest)"));
        let library = install::install(version, cuda)?;
        eprintln!("kept {}", library.display());
        let used = locate::locate().map_err(failure)?;
        if used.found == Found::Variable && used.path != library {
            eprintln!("notice: ORT_DYLIB_PATH is set and goes before it; unset it to use what was fetched");
        }
        Ok(())
    }

    /// Do files show that the driver of an NVIDIA GPU is loaded?
    fn gpu_is_seen() -> bool {
        if cfg!(windows) {
            return std::env::var_os("SystemRoot")
                .is_some_and(|r| Path::new(&r).join("System32").join("nvcuda.dll").is_file());
        }
        // /dev/dxg is a GPU as WSL shows it.
        ["/dev/nvidiactl", "/dev/dxg"].iter().any(|p| Path::new(p).exists())
    }
}

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
    use crate::engine::ort::locate::{self, Found};
    use crate::engine::ort::{About, about, install};
    use crate::error::Failure;
    use crate::io::lines::Lines;
    use serde_json::json;

    fn failure(e: EngineError) -> Failure {
        Failure::check(e.to_string())
    }

    /// The report on the library in use.
    pub(super) fn show(as_json: bool) -> Result<String, Failure> {
        let runtime = locate::locate().map_err(failure)?;
        let About { version, providers, cuda } = about().map_err(failure)?;
        if as_json {
            let cuda = json!({"works": cuda.is_ok(), "reason": cuda.as_ref().err()});
            let found = runtime.found.name();
            let report = json!({"library": runtime.path.to_string_lossy(), "version": version, "providers": providers, "found": found, "cuda": cuda});
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
}

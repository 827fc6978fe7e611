//! `runtime`: which ONNX Runtime is used; fetch one.

use crate::cli::RuntimeArgs;
use crate::error::Failure;

/// Runs `runtime`; returns what goes to stdout.
///
/// # Errors
/// When no library is found, or none can be fetched.
#[cfg(feature = "ort")]
pub fn runtime(a: &RuntimeArgs) -> Result<String, Failure> {
    use crate::cli::RuntimeCommand;
    let (json, notice) = match &a.command {
        None => (a.json, None),
        Some(RuntimeCommand::Show { json }) => (*json, None),
        Some(RuntimeCommand::Install { cuda, version, json }) => {
            with_library::fetch(version.as_deref(), *cuda)?;
            (*json, cuda.then(with_library::no_gpu).flatten())
        }
    };
    let shown = with_library::show()?;
    if let Some(notice) = notice {
        eprintln!("notice: {notice}");
    }
    Ok(if json { format!("{}\n", shown.json()) } else { shown.text() })
}

/// Runs `runtime`.
///
/// # Errors
/// Always: the tool was built without it.
#[cfg(not(feature = "ort"))]
pub fn runtime(_: &RuntimeArgs) -> Result<String, Failure> {
    Err(Failure::input("this build of ancre-rewrite has no ONNX Runtime support (feature `ort`)"))
}

#[cfg(feature = "ort")]
mod with_library {
    use crate::engine::locate::{self, Found, Runtime};
    use crate::engine::{EngineError, install, library};
    use crate::error::Failure;
    use serde_json::{Value, json};
    use std::path::Path;

    /// The library in use.
    pub(super) struct Shown {
        runtime: Runtime,
        version: String,
        providers: Vec<String>,
    }

    impl Shown {
        pub(super) fn json(&self) -> Value {
            json!({"library": self.runtime.path, "version": self.version, "providers": self.providers,
                   "found": self.runtime.found.name()})
        }

        pub(super) fn text(&self) -> String {
            format!(
                "library    {}\nversion    {}\nproviders  {}\nfound by   {}\n",
                self.runtime.path.display(),
                self.version,
                self.providers.join(", "),
                self.runtime.found
            )
        }
    }

    fn failure(e: EngineError) -> Failure {
        Failure::check(e.to_string())
    }

    pub(super) fn show() -> Result<Shown, Failure> {
        let runtime = locate::locate().map_err(failure)?;
        let version = library::version(&runtime).map_err(failure)?;
        let providers = library::providers().map_err(failure)?;
        Ok(Shown { runtime, version, providers })
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

    /// The reason why the CUDA provider cannot work here, as far as it shows without loading it.
    pub(super) fn no_gpu() -> Option<String> {
        let seen = if cfg!(windows) {
            std::env::var_os("SystemRoot").is_some_and(|r| Path::new(&r).join("System32").join("nvcuda.dll").is_file())
        } else {
            // The second one is a GPU seen from within WSL.
            ["/dev/nvidiactl", "/dev/dxg"].iter().any(|p| Path::new(p).exists())
        };
        (!seen).then(|| {
            "this machine shows no NVIDIA GPU (its driver is not loaded): graphs will run on the CPU until there is one"
                .into()
        })
    }
}

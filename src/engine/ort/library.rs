//! What a loaded ONNX Runtime says about itself, through its C interface.

use super::OrtEngine;
use super::device::{Device, without_cuda};
use super::locate::{Runtime, locate};
use crate::engine::{EngineError, child};
use ::ort::sys;
use ancre_passes::ir::{Attrs, DType, Graph, Op, TensorType};
use ancre_passes::onnx;
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, c_char, c_int};
use std::path::Path;
use std::ptr;

/// What a library says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    pub version: String,
    pub providers: Vec<String>,
    /// Where a graph does not run on CUDA, why not.
    pub cuda: Result<(), String>,
}

/// What the library in use says of itself, in a process of its own where the tool runs engines in those. Fails when there is none,
/// or it cannot be loaded.
pub(crate) fn about() -> Result<About, EngineError> {
    child::about(locate()?.path).unwrap_or_else(about_here)
}

/// As [`about`], in this process.
pub(in crate::engine) fn about_here() -> Result<About, EngineError> {
    Ok(About { version: version(&locate()?)?, providers: providers()?, cuda: cuda()? })
}

/// The version a library states. Fails when it cannot be loaded or is no ONNX Runtime.
fn version(runtime: &Runtime) -> Result<String, EngineError> {
    let fail = |why: String| runtime.unusable(&why);
    #[allow(unsafe_code, reason = "the version stands behind a function of the library, which only a raw call reaches")]
    // SAFETY: `OrtGetApiBase` has this type in every release, its table and the string it gives are static. The library stays
    // loaded: sessions use it too.
    unsafe {
        let library = libloading::Library::new(&runtime.path).map_err(|e| fail(because(&e)))?;
        let base: libloading::Symbol<'_, unsafe extern "C" fn() -> *const sys::OrtApiBase> =
            library.get(b"OrtGetApiBase").map_err(|_| fail("it is no ONNX Runtime".into()))?;
        let base = base().as_ref().ok_or_else(|| fail("it offers no interface".into()))?;
        let text = (base.GetVersionString)();
        let text = if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() };
        std::mem::forget(library);
        Ok(text)
    }
}

/// The execution providers the loaded library was built with, in its order of preference. Fails when no library can be
/// loaded.
fn providers() -> Result<Vec<String>, EngineError> {
    super::environment()?;
    let api = ::ort::api();
    let (mut names, mut count): (*mut *mut c_char, c_int) = (ptr::null_mut(), 0);
    let mut found = Vec::new();
    #[allow(unsafe_code, reason = "the list of providers stands behind a raw function of the interface")]
    // SAFETY: on success the call hands over an array of `count` strings that stays valid until it is released. Without
    // success nothing was handed over; the status object, a few bytes, is left.
    unsafe {
        let status = (api.GetAvailableProviders)(&mut names, &mut count);
        if status.0.is_null() && !names.is_null() {
            for i in 0..usize::try_from(count).unwrap_or(0) {
                found.push(CStr::from_ptr(*names.add(i)).to_string_lossy().into_owned());
            }
            let _ = (api.ReleaseAvailableProviders)(names, count);
        }
    }
    Ok(found)
}

/// An error with its source, which holds the loader's own words.
fn because(e: &dyn std::error::Error) -> String {
    e.source().map_or_else(|| e.to_string(), |source| format!("{e}: {source}"))
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
    Ok(engine.open(&model, None).map(drop).map_err(|e| {
        let text = e.to_string();
        let short = text.lines().next().unwrap_or_default().to_string();
        if gpu_is_seen() { short } else { "this machine shows no NVIDIA GPU (its driver is not loaded)".into() }
    }))
}

/// Do files show that the driver of an NVIDIA GPU is loaded?
fn gpu_is_seen() -> bool {
    if cfg!(windows) {
        return std::env::var_os("SystemRoot").is_some_and(|r| Path::new(&r).join("System32").join("nvcuda.dll").is_file());
    }
    // /dev/dxg is a GPU as WSL shows it.
    ["/dev/nvidiactl", "/dev/dxg"].iter().any(|p| Path::new(p).exists())
}

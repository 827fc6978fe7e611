//! What a loaded ONNX Runtime says about itself, through its C interface.

use super::locate::Runtime;
use crate::engine::EngineError;
use ::ort::sys;
use std::ffi::{CStr, c_char, c_int};
use std::ptr;

/// The version a library states. Fails when it cannot be loaded or is no ONNX Runtime.
pub(crate) fn version(runtime: &Runtime) -> Result<String, EngineError> {
    let fail = |why: String| EngineError::NoRuntime(format!("`{}` cannot be used: {why}", runtime.path.display()));
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
pub(crate) fn providers() -> Result<Vec<String>, EngineError> {
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

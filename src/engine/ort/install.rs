//! Fetches a stock ONNX Runtime: downloads its pip wheel and keeps the shared libraries. No Python environment is modified.

use super::locate;
use crate::error::Failure;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Downloads a wheel (the newest one without a `version`; the one with CUDA providers if asked) and unpacks its libraries
/// into the user's cache, where [`locate::locate`] finds them. Returns the library. What is already there is not fetched
/// again. Fails without a Python that has pip, without network, or when the version does not exist for this platform.
pub fn install(version: Option<&str>, cuda: bool) -> Result<PathBuf, Failure> {
    let cache = locate::cache_dir().ok_or_else(|| {
        Failure::check(
            "the user's cache directory is unknown: neither XDG_CACHE_HOME nor HOME (Windows: LOCALAPPDATA) is set",
        )
    })?;
    let strange = |v: &&str| v.is_empty() || !v.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
    if let Some(version) = version.filter(strange) {
        return Err(Failure::input(format!("`{version}` is no version; one such as 1.24.1 was expected")));
    }
    let fail = |what: &str, e: std::io::Error| Failure::check(format!("{what} failed: {e}")).at(&cache);
    let choose = |folder: &str| locate::choose(&cache, folder).map_err(|e| fail("remembering the choice", e));
    if let Some(folder) = version.map(|v| folder(v, cuda))
        && let Some(library) = locate::newest_library(&cache.join(&folder), 0)
    {
        choose(&folder)?;
        return Ok(library);
    }
    std::fs::create_dir_all(&cache).map_err(|e| fail("making the cache directory", e))?;
    // On the destination's file system, so that the last step is one rename; outside the folder that is searched for libraries.
    let beside = cache.parent().unwrap_or(&cache);
    let work = tempfile::Builder::new().prefix(".install-").tempdir_in(beside).map_err(|e| fail("making a directory", e))?;
    let wheel = download(version, cuda, work.path())?;
    let name = wheel.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let version = name.split('-').nth(1).unwrap_or("unknown").to_string();
    let unpacked = work.path().join("wheel");
    python(&["-m", "zipfile", "-e"], &[wheel.as_os_str(), unpacked.as_os_str()])?;

    let kept = work.path().join("libraries");
    std::fs::create_dir_all(&kept).map_err(|e| fail("making a directory", e))?;
    let capi = unpacked.join("onnxruntime").join("capi");
    for entry in std::fs::read_dir(&capi).into_iter().flatten().flatten() {
        if is_part(&entry.file_name().to_string_lossy()) {
            std::fs::rename(entry.path(), kept.join(entry.file_name())).map_err(|e| fail("unpacking the wheel", e))?;
        }
    }
    if locate::newest_library(&kept, 0).is_none() {
        return Err(Failure::check(format!("the wheel `{name}` holds no ONNX Runtime library for this platform")));
    }
    let destination = cache.join(folder(&version, cuda));
    if let Err(e) = std::fs::rename(&kept, &destination) {
        // Another process may have installed the same version meanwhile.
        locate::newest_library(&destination, 0).ok_or_else(|| fail("moving the libraries into place", e))?;
    }
    choose(&folder(&version, cuda))?;
    locate::newest_library(&destination, 0)
        .ok_or_else(|| Failure::check("the libraries vanished while being installed").at(&destination))
}

fn folder(version: &str, cuda: bool) -> String {
    format!("{version}{}", if cuda { "-cuda" } else { "" })
}

/// Is this file of the wheel the runtime or one of its providers? The Python module is neither.
fn is_part(name: &str) -> bool {
    if cfg!(windows) {
        name.starts_with("onnxruntime") && name.ends_with(".dll")
    } else {
        name.starts_with("libonnxruntime") && (name.contains(".so") || name.ends_with(".dylib"))
    }
}

fn download(version: Option<&str>, cuda: bool, work: &Path) -> Result<PathBuf, Failure> {
    let package = if cuda { "onnxruntime-gpu" } else { "onnxruntime" };
    let wanted = version.map_or(package.to_string(), |v| format!("{package}=={v}"));
    let options = "-m pip download --no-deps --only-binary=:all: --disable-pip-version-check --quiet";
    let arguments: Vec<&str> = options.split(' ').chain([wanted.as_str(), "-d"]).collect();
    python(&arguments, &[work.as_os_str()])?;
    let entries = std::fs::read_dir(work).into_iter().flatten().flatten().map(|e| e.path());
    entries
        .filter(|p| p.extension() == Some(OsStr::new("whl")))
        .max()
        .ok_or_else(|| Failure::check(format!("pip downloaded no wheel for {wanted}")))
}

/// Runs Python. The error holds what Python said.
fn python(arguments: &[&str], paths: &[&OsStr]) -> Result<(), Failure> {
    let help = "this needs Python 3 with pip, network, and a version that exists for this platform; or set ORT_DYLIB_PATH to a library of your own";
    for name in locate::PYTHONS {
        let Ok(out) = Command::new(name).args(arguments).args(paths).stdin(Stdio::null()).output() else { continue };
        if out.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&out.stderr);
        let last = said.lines().rev().map(str::trim).find(|l| !l.is_empty()).unwrap_or("it gave no reason");
        return Err(Failure::check(format!("`{name} {}` failed: {last}", arguments.join(" "))).help(help));
    }
    Err(Failure::check("no Python 3 was found on the path; its pip fetches ONNX Runtime").help(help))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(windows))]
    fn libraries_and_providers_are_kept_but_not_the_python_module() {
        for name in ["libonnxruntime.so.1.24.1", "libonnxruntime_providers_shared.so", "libonnxruntime.1.24.1.dylib"] {
            assert!(is_part(name), "{name}");
        }
        for name in
            ["onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so", "_ld_preload.py", "build_and_package_info.py"]
        {
            assert!(!is_part(name), "{name}");
        }
    }

    #[test]
    fn a_version_cannot_be_an_option_or_a_path() {
        for version in ["", "../1", "--help", "1 2"] {
            assert_eq!(install(Some(version), false).unwrap_err().status, 2, "{version}");
        }
    }
}

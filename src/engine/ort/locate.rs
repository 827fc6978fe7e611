//! Finds the user's ONNX Runtime: the variable, this tool's cache, Python's package, the system.

use crate::engine::EngineError;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock};

/// The environment variable that names the library to use; it goes before everything else.
pub(in crate::engine) const PATH_VARIABLE: &str = "ORT_DYLIB_PATH";
/// Folder of the user's cache that holds runtimes fetched by this tool.
const CACHE_FOLDER: [&str; 2] = ["ancre-rewrite", "onnxruntime"];

/// The file of the cache that names the folder of the runtime that was asked for last.
const CHOICE: &str = "chosen";

/// Interpreters to try, the platform's usual name first.
pub(super) const PYTHONS: [&str; 2] = if cfg!(windows) { ["python", "python3"] } else { ["python3", "python"] };

/// How a library was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The environment variable `ORT_DYLIB_PATH` names it.
    Variable,
    /// It lies in this tool's folder of the user's cache.
    Cache,
    /// It belongs to the pip package `onnxruntime` of the Python that runs this tool, or else of the one on the path.
    Python,
    /// It lies where the system looks for shared libraries.
    System,
}

impl Found {
    /// One word, for reports that machines read.
    pub fn name(self) -> &'static str {
        match self {
            Found::Variable => "variable",
            Found::Cache => "cache",
            Found::Python => "python",
            Found::System => "system",
        }
    }
}

impl Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Found::Variable => "environment variable ORT_DYLIB_PATH",
            Found::Cache => "user cache (`ancre-rewrite runtime install`)",
            Found::Python => "pip package onnxruntime of the Python in use",
            Found::System => "system library path",
        })
    }
}

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// The file.
    pub path: PathBuf,
    /// Version as the file's name states it; Windows names state none.
    pub version: Option<String>,
    /// How it was found.
    pub found: Found,
}

impl Runtime {
    /// Is it of a version that this tool cannot use, by its name?
    fn is_too_old(&self) -> bool {
        let minor = self.version.as_deref().and_then(|v| v.strip_prefix("1.")?.split('.').next()?.parse::<u32>().ok());
        minor.is_some_and(|minor| minor < ort::MINOR_VERSION)
    }

    /// The error of a library that cannot be used, with what leads to another one.
    pub(super) fn unusable(&self, why: &str) -> EngineError {
        let other = match self.found {
            // The variable goes before all that can be fetched.
            Found::Variable => format!("correct or unset {PATH_VARIABLE}"),
            _ => format!("fetch another one with `ancre-rewrite runtime install`, or set {PATH_VARIABLE}"),
        };
        let (path, found) = (self.path.display(), self.found);
        EngineError::NoRuntime(format!("the ONNX Runtime at `{path}` (found by {found}) cannot be used: {why}; {other}"))
    }
}

/// The folder of the pip package `onnxruntime` of the Python that runs this tool.
static PACKAGE: RwLock<Option<PathBuf>> = RwLock::new(None);

/// Says where the pip package `onnxruntime` lies, from now on, of the Python that runs this tool. Its users have chosen the package with
/// their environment, so it goes before the cache.
pub fn prefer(package: Option<PathBuf>) {
    *PACKAGE.write().unwrap_or_else(PoisonError::into_inner) = package;
}

/// Finds the library: the variable, then the package that was [preferred](prefer) unless it is too old, then the cache, then the pip package of the
/// `python3` on the path, then the system. Fails when there is none; the message says how to get one.
pub fn locate() -> Result<Runtime, EngineError> {
    if let Some(path) = std::env::var_os(PATH_VARIABLE).filter(|p| !p.is_empty()).map(PathBuf::from) {
        if !path.is_file() {
            let message = format!("{PATH_VARIABLE} names `{}`, which is no file; correct or unset it", path.display());
            return Err(EngineError::NoRuntime(message));
        }
        return Ok(runtime(path, Found::Variable));
    }
    let package = PACKAGE.read().unwrap_or_else(PoisonError::into_inner).clone();
    let own = package.and_then(|dir| newest_library(&dir.join("capi"), 0)).map(|p| runtime(p, Found::Python));
    // An old one is named where there is no other.
    let (own, old) = if own.as_ref().is_some_and(Runtime::is_too_old) { (None, own) } else { (own, None) };
    let cached = || cache_dir().and_then(|dir| chosen_library(&dir)).map(|p| runtime(p, Found::Cache));
    let found = own.or_else(cached).or_else(|| python_library().map(|p| runtime(p, Found::Python)));
    found.or_else(|| system_library().map(|p| runtime(p, Found::System))).or(old).ok_or_else(|| {
        EngineError::NoRuntime(format!(
            "no ONNX Runtime was found: {PATH_VARIABLE} is not set, the cache holds none, the Python on the path has no package \
             onnxruntime, and the system has no {}; run `ancre-rewrite runtime install`",
            library_names().0
        ))
    })
}

fn runtime(path: PathBuf, found: Found) -> Runtime {
    let version = path.file_name().and_then(|n| n.to_str()).and_then(version_in).map(str::to_string);
    Runtime { path, version, found }
}

/// The folder of the user's cache into which runtimes are fetched.
pub fn cache_dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = if cfg!(windows) {
        var("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        var("HOME").map(|h| h.join("Library").join("Caches"))
    } else {
        var("XDG_CACHE_HOME").or_else(|| var("HOME").map(|h| h.join(".cache")))
    };
    base.map(|b| CACHE_FOLDER.iter().fold(b, |path, part| path.join(part)))
}

/// Prefix and suffix of the library's file name here.
fn library_names() -> (&'static str, &'static str, &'static str) {
    if cfg!(windows) {
        ("onnxruntime.dll", "onnxruntime", ".dll")
    } else if cfg!(target_os = "macos") {
        ("libonnxruntime.dylib", "libonnxruntime", ".dylib")
    } else {
        ("libonnxruntime.so", "libonnxruntime", ".so")
    }
}

/// Is `name` the library's own, and not one of its providers'? `libonnxruntime.so.1.32.0`,
/// `libonnxruntime.1.32.0.dylib`, `onnxruntime.dll`.
pub(crate) fn is_library(name: &str) -> bool {
    let (_, prefix, suffix) = library_names();
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.') && rest.contains(suffix))
}

fn version_in(name: &str) -> Option<&str> {
    let start = name.find(|c: char| c.is_ascii_digit())?;
    let rest = &name[start..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    Some(rest[..end].trim_end_matches('.'))
}

/// The library with the highest version below a folder.
pub(super) fn newest_library(dir: &Path, depth: usize) -> Option<PathBuf> {
    let order = |p: &PathBuf| -> (Vec<u64>, PathBuf) {
        // The version may be in the file's name or in a folder's.
        let text = p.strip_prefix(dir).unwrap_or(p).to_string_lossy().into_owned();
        let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        (numbers, p.clone())
    };
    let mut all = Vec::new();
    collect_libraries(dir, depth, &mut all);
    all.into_iter().max_by_key(order)
}

fn collect_libraries(dir: &Path, depth: usize, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if depth > 0 {
                collect_libraries(&path, depth - 1, all);
            }
        } else if path.file_name().and_then(|n| n.to_str()).is_some_and(is_library) {
            all.push(path);
        }
    }
}

/// Remembers the cache's folder that was asked for last.
pub(super) fn choose(cache: &Path, folder: &str) -> std::io::Result<()> {
    std::fs::write(cache.join(CHOICE), folder)
}

/// The cache's library: the one installed last, else the newest.
fn chosen_library(cache: &Path) -> Option<PathBuf> {
    let chosen = std::fs::read_to_string(cache.join(CHOICE)).ok();
    let library = chosen.and_then(|folder| newest_library(&cache.join(folder.trim()), 1));
    library.or_else(|| newest_library(cache, 4))
}

/// A library where the system's loader would find it.
fn system_library() -> Option<PathBuf> {
    let (variable, usual): (&str, &[&str]) = if cfg!(windows) {
        ("PATH", &[])
    } else if cfg!(target_os = "macos") {
        ("DYLD_LIBRARY_PATH", &["/usr/local/lib", "/opt/homebrew/lib", "/usr/lib"])
    } else {
        ("LD_LIBRARY_PATH", &["/usr/local/lib", "/usr/local/lib64", "/usr/lib", "/usr/lib64", "/lib", "/lib64"])
    };
    let asked = std::env::var_os(variable);
    let asked = asked.iter().flat_map(std::env::split_paths).filter(|p| !p.as_os_str().is_empty());
    // Debian and its kin keep libraries in a folder of the machine's name.
    let machine = |dir: &&str| [PathBuf::from(dir), Path::new(dir).join(format!("{}-linux-gnu", std::env::consts::ARCH))];
    asked.chain(usual.iter().flat_map(machine)).find_map(|dir| newest_library(&dir, 0))
}

/// The library in the pip package of the Python on the path. The package is looked up, not imported.
fn python_library() -> Option<PathBuf> {
    const ASK: &str = "import importlib.util as u\ns = u.find_spec('onnxruntime')\nprint(s.submodule_search_locations[0])";
    PYTHONS.iter().find_map(|python| {
        let out = Command::new(python).args(["-c", ASK]).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        let dir = String::from_utf8(out.stdout).ok().filter(|_| out.status.success())?;
        newest_library(&Path::new(dir.trim()).join("capi"), 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_from_their_providers() {
        let (plain, ..) = library_names();
        assert!(is_library(plain) && !is_library("libonnxruntime_providers_shared.so"));
        assert_eq!(version_in("libonnxruntime.so.1.32.0"), Some("1.32.0"));
        assert_eq!(version_in("libonnxruntime.1.32.0.dylib"), Some("1.32.0"));
        assert_eq!(version_in("onnxruntime.dll"), None);
    }

    #[test]
    fn versions_that_cannot_be_used_are_known() {
        let old = |name: &str| runtime(PathBuf::from(name), Found::Python).is_too_old();
        assert!(old("libonnxruntime.so.1.9.1") && old("libonnxruntime.1.19.2.dylib"));
        assert!(!old("libonnxruntime.so.1.24.0") && !old("libonnxruntime.so.2.0.0") && !old("onnxruntime.dll"));
    }

    #[test]
    fn the_newest_library_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, ..) = library_names();
        for version in ["1.9.1", "1.24.0", "1.23.2"] {
            let folder = dir.path().join(version).join("capi");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(plain), b"").unwrap();
        }
        let newest = newest_library(dir.path(), 4).unwrap();
        assert!(newest.starts_with(dir.path().join("1.24.0")), "{}", newest.display());
    }

    #[test]
    fn the_one_installed_last_goes_before_newer_ones() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, ..) = library_names();
        for folder in ["1.24.0-cuda", "1.32.0"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
            std::fs::write(dir.path().join(folder).join(plain), b"").unwrap();
        }
        let taken = |dir: &Path| chosen_library(dir).unwrap().parent().unwrap().file_name().unwrap().to_owned();
        assert_eq!(taken(dir.path()), "1.32.0");
        choose(dir.path(), "1.24.0-cuda").unwrap();
        assert_eq!(taken(dir.path()), "1.24.0-cuda");
        std::fs::remove_dir_all(dir.path().join("1.24.0-cuda")).unwrap();
        assert_eq!(taken(dir.path()), "1.32.0");
    }
}

//! `runtime`: a wheel is fetched and found again, in a cache of its own; what cannot be found or loaded is said.

use crate::common::{Ran, runtime};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the tool with an empty search: no variable, this cache, nothing on the path but what `path` says.
fn alone(cache: &Path, path: Option<&str>, variables: &[(&str, &Path)], arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ancre-rewrite"));
    command.args(arguments).env_remove("ORT_DYLIB_PATH").env_remove("LD_LIBRARY_PATH");
    for name in ["XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"] {
        command.env(name, cache);
    }
    if let Some(path) = path {
        command.env("PATH", path);
    }
    for (name, value) in variables {
        command.env(name, value);
    }
    let out = command.stdin(Stdio::null()).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { status: out.status.code().unwrap_or(-1), out: said(&out.stdout), err: said(&out.stderr) }
}

#[test]
fn without_a_library_the_one_command_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let ran = alone(cache.path(), Some("/nowhere"), &[], &["runtime"]);
    if ran.status == 0 && ran.out.contains("system library path") {
        return;
    }
    assert!(ran.status == 1 && ran.err.contains("run `ancre-rewrite runtime install`"), "{}{}", ran.out, ran.err);
    assert!(ran.out.is_empty());
}

#[test]
fn the_library_in_use_is_shown() {
    let cache = tempfile::tempdir().unwrap();
    let shown = alone(cache.path(), None, &[("ORT_DYLIB_PATH", runtime())], &["runtime", "show", "--json"]).json();
    assert_eq!((shown["found"].as_str(), shown["library"].as_str()), (Some("variable"), runtime().to_str()));
    assert!(shown["version"].as_str().unwrap().starts_with("1."), "{shown}");
    assert!(shown["providers"].as_array().unwrap().iter().any(|p| p == "CPUExecutionProvider"), "{shown}");
    assert!(shown["cuda"]["works"].is_boolean(), "{shown}");
    // The same library where the system's loader looks.
    if cfg!(target_os = "linux") {
        let variables = [("LD_LIBRARY_PATH", runtime().parent().unwrap())];
        let shown = alone(cache.path(), Some("/nowhere"), &variables, &["runtime", "show", "--json"]).json();
        assert_eq!(shown["found"], "system", "{shown}");
    }
    let text = cache.path().join("libonnxruntime.so");
    std::fs::write(&text, "no library").unwrap();
    for (file, said) in [(text.as_path(), "cannot be used"), (Path::new("/nowhere/x.so"), "is no file")] {
        let ran = alone(cache.path(), None, &[("ORT_DYLIB_PATH", file)], &["runtime", "show"]);
        assert!(ran.status == 1 && ran.err.contains(said), "{}", ran.err);
    }
}

#[test]
fn a_wheel_is_fetched_kept_and_found_again() {
    let cache = tempfile::tempdir().unwrap();
    let installed = alone(cache.path(), None, &[], &["runtime", "install", "--json"]).json();
    assert_eq!(installed["found"], "cache", "{installed}");
    assert!(Path::new(installed["library"].as_str().unwrap()).starts_with(cache.path()), "{installed}");
    let shown = alone(cache.path(), Some("/nowhere"), &[], &["runtime", "show", "--json"]).json();
    assert_eq!(shown, installed);
    // What is there is not fetched again: no Python is needed any more.
    let version = installed["version"].as_str().unwrap();
    let again = alone(cache.path(), Some("/nowhere"), &[], &["runtime", "install", "--version", version, "--json"]).json();
    assert_eq!(again, installed);
    let ran = alone(cache.path(), Some("/nowhere"), &[], &["runtime", "install", "--version", "0.0.1"]);
    assert!(ran.status == 1 && ran.err.contains("no Python 3 was found"), "{}", ran.err);
    let ran = alone(cache.path(), None, &[], &["runtime", "install", "--version", "../x"]);
    assert!(ran.status == 2 && ran.err.contains("is no version"), "{}", ran.err);
}

//! `verify --pairs`: rewritten models against their sources, as CI does it. Each pair is compared in a process of its own, so that
//! whatever ends that one leaves the others to be checked.

use super::command::{Answer, write};
use super::{junit, report};
use crate::cli::VerifyArgs;
use crate::engine::child;
use crate::error::Failure;
use quick_junit::{Report, TestCaseStatus};
use serde_json::json;
use std::collections::HashSet;
use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Ends of the names of a rewritten model and of its source.
const REWRITTEN: &str = ".ancre.onnx";
const SOURCE: &str = ".onnx";

/// A rewritten model and what it is compared with.
struct Pair {
    source: PathBuf,
    rewritten: PathBuf,
    /// Was it found without its source beside it?
    is_orphan: bool,
}

/// What came of a pair.
struct Checked {
    pair: Pair,
    /// 0, 1 or 2, as of `verify`.
    status: u8,
    /// The result in words.
    result: String,
    /// Why, unless the models are equivalent.
    why: String,
    report: PathBuf,
}

/// Compares all pairs. Fails when they cannot be listed, or a report cannot be written; a pair that cannot be checked is part of the
/// answer, whose status is 0 where all are equivalent, 2 where one could not be checked, else 1.
pub(super) fn verify_all(args: &VerifyArgs) -> Result<Answer, Failure> {
    let (pairs, notes) = listed(args)?;
    notes.iter().for_each(|note| eprintln!("note: {note}"));
    let fail = |e: std::io::Error| Failure::input(format!("a directory for the reports cannot be made: {e}"));
    let temporary = tempfile::tempdir().map_err(fail)?;
    let dir = args.junit.as_deref().unwrap_or(temporary.path());
    fs::create_dir_all(dir).map_err(|e| fail(e).at(dir))?;
    clear(dir)?;
    let mut names = Names::default();
    let mut all = Vec::new();
    for pair in pairs {
        let report = dir.join(names.of(&pair.rewritten));
        all.push(check(args, pair, report)?);
    }
    if let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from) {
        let file = fs::OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut f| f.write_all(summary(&all).as_bytes()));
        written.map_err(|e| Failure::input(format!("the summary cannot be written: {e}")).at(&path))?;
    }
    let status = all.iter().map(|c| c.status).max().unwrap_or(0);
    Ok(Answer { text: if args.json { json_of(args, &all) } else { text(args, &all) }, status })
}

/// The pairs, those named in files first, and notes on what is passed over.
fn listed(args: &VerifyArgs) -> Result<(Vec<Pair>, Vec<String>), Failure> {
    let (dirs, files): (Vec<&PathBuf>, Vec<&PathBuf>) = args.pairs.iter().partition(|p| p.is_dir());
    let mut pairs = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(file))?;
        for line in text.lines() {
            match split(line).as_deref() {
                Some([]) => {}
                Some([source, rewritten]) => {
                    pairs.push(Pair { source: source.into(), rewritten: rewritten.into(), is_orphan: false });
                }
                _ => {
                    return Err(Failure::input(format!("`{line}` is not SOURCE REWRITTEN"))
                        .at(file)
                        .help("a line has two paths; one with blanks stands in quotes, # begins a comment"));
                }
            }
        }
    }
    let plain = |p: &Path| p.strip_prefix(".").unwrap_or(p).to_path_buf();
    let named: HashSet<PathBuf> = pairs.iter().map(|p| plain(&p.rewritten)).collect();
    let mut notes = Vec::new();
    for dir in dirs {
        let mut found = Vec::new();
        collect(dir, &mut found)?;
        found.sort();
        for rewritten in found.into_iter().filter(|p| !named.contains(&plain(p))) {
            let name = rewritten.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let stem = name.strip_suffix(REWRITTEN).unwrap_or(name);
            let source = rewritten.with_file_name(format!("{stem}{SOURCE}"));
            let is_orphan = !source.is_file();
            if is_orphan && args.allow_missing_source {
                notes.push(format!("{} has no source beside it", rewritten.display()));
            } else {
                pairs.push(Pair { source, rewritten, is_orphan });
            }
        }
    }
    if pairs.is_empty() {
        return Err(Failure::input("there is nothing to verify")
            .help("--pairs takes a directory with STEM.onnx and STEM.ancre.onnx in it, or a file with a line SOURCE REWRITTEN for each pair"));
    }
    Ok((pairs, notes))
}

/// Words of a line: blanks separate them, quotes keep blanks, a word that starts with # begins a comment. `None` where a quote does
/// not end.
fn split(line: &str) -> Option<Vec<String>> {
    let (mut words, mut rest) = (Vec::new(), line.trim());
    while !rest.is_empty() && !rest.starts_with('#') {
        let mut word = String::new();
        while let Some(first) = rest.chars().next().filter(|c| !c.is_whitespace()) {
            let part = if let '"' | '\'' = first {
                let end = rest[1..].find(first)?;
                let part = &rest[1..end + 1];
                rest = &rest[end + 2..];
                part
            } else {
                let end = rest.find(|c: char| c.is_whitespace() || c == '"' || c == '\'').unwrap_or(rest.len());
                let (part, after) = rest.split_at(end);
                rest = after;
                part
            };
            word.push_str(part);
        }
        words.push(word);
        rest = rest.trim_start();
    }
    Some(words)
}

/// The rewritten models below a directory.
fn collect(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::input(format!("cannot be read: {e}")).at(dir);
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let path = entry.path();
        if entry.file_type().map_err(fail)?.is_dir() {
            collect(&path, found)?;
        } else if path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(REWRITTEN)) {
            found.push(path);
        }
    }
    Ok(())
}

/// Removes the reports of an earlier run, which would stand beside this one's.
fn clear(dir: &Path) -> Result<(), Failure> {
    let fail = |e: std::io::Error| Failure::input(format!("earlier reports cannot be removed: {e}")).at(dir);
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let is_report = path.extension().is_some_and(|e| e == "xml") && path.is_file();
        let said = if is_report { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        if Report::deserialize_from_str(&said).is_ok_and(|r| r.name.is_some_and(|n| n.as_str() == junit::NAME)) {
            fs::remove_file(&path).map_err(fail)?;
        }
    }
    Ok(())
}

/// Names of reports: the model's path with / as %2F, so that no two paths share one. The file systems of macOS and Windows take A
/// for a, and one model may have several sources: a name that is taken gets a number.
#[derive(Default)]
struct Names(HashSet<String>);

impl Names {
    fn of(&mut self, path: &Path) -> String {
        let mut name = path.display().to_string();
        for (from, to) in [("%", "%25"), ("/", "%2F"), ("\\", "%5C"), (":", "%3A"), (" ", "%20")] {
            name = name.replace(from, to);
        }
        // A file's name has 255 bytes at most.
        let cut = (0..name.len()).find(|i| name.len() - i <= 200 && name.is_char_boundary(*i)).unwrap_or(0);
        let name = &name[cut..];
        let mut unique = name.to_string();
        let mut n = 1;
        while !self.0.insert(unique.to_lowercase()) {
            n += 1;
            unique = format!("{name}-{n}");
        }
        unique + ".xml"
    }
}

/// Compares a pair in a process of its own.
fn check(args: &VerifyArgs, pair: Pair, report: PathBuf) -> Result<Checked, Failure> {
    let is_ci = std::env::var_os("GITHUB_ACTIONS").is_some_and(|v| v == "true");
    let class = format!("{} {}", pair.source.display(), pair.rewritten.display());
    let mut failure = pair.is_orphan.then(|| {
        Failure::input(format!("its source {} is gone or renamed", pair.source.display())).help(format!(
            "name the pair in a file of pairs, remove {}, or --allow-missing-source",
            pair.rewritten.display()
        ))
    });
    let mut status = 2;
    if failure.is_none() {
        let mut command = child::program().ok_or_else(|| Failure::input("this program's own file is not found"))?.command();
        command.arg("verify").args(args.of_one()).arg("--junit").arg(&report).arg("--");
        let ran = command.args([&pair.source, &pair.rewritten]).output();
        let ran = ran.map_err(|e| Failure::input(format!("a process for {class} cannot start: {e}")))?;
        if is_ci {
            eprintln!("::group::{}", pair.rewritten.display());
        }
        // All that a process says goes to stderr: stdout has the result, perhaps as JSON.
        if is_ci || args.verbose || !ran.status.success() {
            eprint!("{}", String::from_utf8_lossy(&ran.stdout));
        }
        eprint!("{}", String::from_utf8_lossy(&ran.stderr));
        if is_ci {
            eprintln!("::endgroup::");
        }
        status = ran.status.code().map_or(2, |code| code.clamp(0, 2) as u8);
        // It writes its own report unless it was killed.
        failure = (!report.is_file()).then(|| Failure::input(format!("ancre-rewrite {}", ended(ran.status))));
    }
    if let Some(failure) = &failure {
        status = 2;
        write(&report, &junit::unchecked(&class, failure)?)?;
        report::annotate([report::annotation(&pair.rewritten, junit::UNCHECKED, &failure.to_string())]);
    }
    let (result, why) = match status {
        0 => ("equivalent".into(), String::new()),
        _ => first_failure(&report).unwrap_or_else(|| (junit::UNCHECKED.into(), "its report cannot be read".into())),
    };
    Ok(Checked { pair, status, result, why, report })
}

/// How a process ended that says no more about it.
fn ended(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return format!("died of signal {signal}");
    }
    format!("ended with status {} and left no report", status.code().unwrap_or(-1))
}

/// Type and message of a report's first case that is no success.
fn first_failure(path: &Path) -> Option<(String, String)> {
    let report = Report::deserialize_from_str(&fs::read_to_string(path).ok()?).ok()?;
    report.test_suites.iter().flat_map(|s| &s.test_cases).find_map(|case| match &case.status {
        TestCaseStatus::NonSuccess { ty, message, .. } => {
            let said = |s: &Option<quick_junit::XmlString>| s.as_ref().map_or(String::new(), |s| s.as_str().to_string());
            Some((said(ty), said(message)))
        }
        _ => None,
    })
}

fn count(all: &[Checked]) -> String {
    let equal = all.iter().filter(|c| c.status == 0).count();
    format!("{equal} of {} rewritten models are equivalent to their sources.", all.len())
}

/// The table for a CI job's summary, in Markdown.
fn summary(all: &[Checked]) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
    let mut out = format!("{}\n\n| source | rewritten | | |\n|---|---|---|---|\n", count(all));
    for c in all {
        let result = if c.status == 0 { c.result.clone() } else { format!("**{}**", c.result) };
        let paths = [&c.pair.source, &c.pair.rewritten].map(|p| cell(&p.display().to_string()));
        let _ = writeln!(out, "| {} | {} | {result} | {} |", paths[0], paths[1], cell(&c.why));
    }
    out
}

fn text(args: &VerifyArgs, all: &[Checked]) -> String {
    let mut out = String::new();
    for c in all.iter().filter(|c| c.status != 0 || !args.quiet) {
        let why = if c.why.is_empty() { String::new() } else { format!("  ({})", c.why) };
        let _ = writeln!(out, "{:<22}{}{why}", c.result, c.pair.rewritten.display());
    }
    if !args.quiet {
        let _ = writeln!(out, "{}", count(all));
    }
    out
}

fn json_of(args: &VerifyArgs, all: &[Checked]) -> String {
    let pairs = all.iter().map(|c| {
        json!({"source": c.pair.source.to_string_lossy(), "rewritten": c.pair.rewritten.to_string_lossy(), "result": c.result,
               "equivalent": c.status == 0, "why": c.why, "junit": args.junit.as_ref().map(|_| c.report.to_string_lossy())})
    });
    let equal = all.iter().filter(|c| c.status == 0).count();
    format!("{}\n", json!({"pairs": pairs.collect::<Vec<_>>(), "equivalent": equal, "of": all.len()}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let words = |line| split(line).map(|w| w.join("|"));
        for (line, seen) in [
            ("a.onnx b.onnx", "a.onnx|b.onnx"),
            ("  \"my nets/a b.onnx\" 'c # d.onnx'\t# and more", "my nets/a b.onnx|c # d.onnx"),
            ("a\"b c\"'d' e#f", "ab cd|e#f"),
            ("# nothing", ""),
            ("\r", ""),
            ("é \"ü ö\"", "é|ü ö"),
        ] {
            assert_eq!(words(line).as_deref(), Some(seen), "{line}");
        }
        assert_eq!((words("a \"b"), words("'")), (None, None));
    }

    #[test]
    fn no_two_reports_have_one_name() {
        let mut names = Names::default();
        let mut of = |path: &str| names.of(Path::new(path));
        let seen = ["a_b/m.onnx", "a/b_m.onnx", "a/B_m.onnx", "a/b_m.onnx", "a%2Fb m.onnx"].map(&mut of);
        assert_eq!(
            seen,
            ["a_b%2Fm.onnx.xml", "a%2Fb_m.onnx.xml", "a%2FB_m.onnx-2.xml", "a%2Fb_m.onnx-3.xml", "a%252Fb%20m.onnx.xml"]
        );
        let long = "ä/".repeat(300);
        let (one, two) = (of(&format!("x{long}m.onnx")), of(&format!("y{long}m.onnx")));
        assert!(one != two && one.len() <= 210 && one.ends_with("m.onnx.xml"), "{one} {two}");
    }

    #[cfg(unix)]
    #[test]
    fn a_process_that_is_killed_could_not_check() {
        let run = |script: &str| Command::new("sh").args(["-c", script]).status().unwrap();
        assert_eq!(ended(run("kill -9 $$")), "died of signal 9");
        assert_eq!(ended(run("exit 7")), "ended with status 7 and left no report");
    }
}

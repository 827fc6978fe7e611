//! The JUnit report: one suite, one case for the interface, for the proof and for each output.

use super::gradient::{self, GradientReport};
use super::report::{divergence_line, engine_name, why_infinite};
use super::{Subject, Verdict, VerifyOptions};
use crate::error::Failure;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use std::path::Path;
use std::time::Duration;

/// What reports of this tool are called.
pub(super) const NAME: &str = "ancre-rewrite verify";

/// What models are called where only a proof counts and none was found.
pub(super) const UNPROVED: &str = "not proved";

/// What a check is called that could not be made. It is no "not equivalent".
pub(super) const UNCHECKED: &str = "could not be checked";

fn case(name: &str, class: &str, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(name, status);
    case.set_classname(class);
    case
}

/// A failure by its message and description; no problem is a success.
fn status(problem: Option<(String, String)>) -> TestCaseStatus {
    let Some((message, description)) = problem else { return TestCaseStatus::success() };
    failure("not equivalent", message, description)
}

fn failure(kind: &str, message: String, description: String) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
    status.set_message(message).set_type(kind).set_description(description);
    status
}

fn serialize(suite: TestSuite) -> Result<String, Failure> {
    let mut report = Report::new(NAME);
    report.add_test_suite(suite);
    report.to_string().map_err(|e| Failure::input(format!("the JUnit report cannot be written: {e}")))
}

pub(super) fn of_verdict(a: &Subject, b: &Subject, v: &Verdict, o: &VerifyOptions, seconds: f64) -> Result<String, Failure> {
    let class = format!("{} {}", a.path.display(), b.path.display());
    let mut suite = TestSuite::new(format!("{NAME} {class}"));
    let breaking: Vec<String> =
        v.interface.iter().filter(|d| d.breaking).map(|d| format!("{}: {} in A, {} in B", d.what, d.a, d.b)).collect();
    let problem = (!breaking.is_empty()).then(|| (breaking[0].clone(), breaking.join("\n")));
    suite.add_test_case(case("interface", &class, status(problem)));
    if let Some(p) = &v.proof {
        // Where the models were run, a missing proof is no failure.
        let mut status = TestCaseStatus::success();
        if v.is_unproved() {
            status = failure(UNPROVED, "no proof was found".into(), p.reason.clone());
        } else if !p.proved {
            status = TestCaseStatus::skipped();
            status.set_message(format!("none found: {}", p.reason));
        }
        suite.add_test_case(case("proof", &class, status));
    }
    if let Some(n) = &v.numeric {
        suite.add_property(("engine", engine_name(n)));
        suite.add_property(("trials", n.report.trials.to_string().as_str()));
        suite.add_property(("seed", o.seed.to_string().as_str()));
        let place = v.divergence.as_ref().map(divergence_line);
        for c in &n.report.outputs {
            let by = why_infinite(c).unwrap_or_else(|| {
                let allowed = (o.tolerance.atol, o.tolerance.rtol);
                let (abs, rel) = (c.verdict.max_abs, c.verdict.max_rel);
                format!(
                    "differs by {abs:.3e}, {rel:.3e} of its largest magnitude; allowed {:.1e} + {:.1e} of it",
                    allowed.0, allowed.1
                )
            });
            let shown = n.failing.as_ref().map(|f| format!("shown by {} on input: {}", f.engine, f.trial.label()));
            let first = place.as_ref().map(|p| format!("first at {p}"));
            let details = [Some(by.clone()), shown, first].into_iter().flatten().collect::<Vec<_>>().join("\n");
            let problem = (!c.verdict.equivalent).then_some((by, details));
            suite.add_test_case(case(&format!("output {}", c.name), &class, status(problem)));
        }
        if let Some(f) = n.failing.as_ref().filter(|f| !f.both_run) {
            let problem = (f.what.clone(), format!("input: {}", f.trial.label()));
            suite.add_test_case(case("runs", &class, status(Some(problem))));
        }
    }
    suite.set_time(Duration::from_secs_f64(seconds));
    serialize(suite)
}

/// The report of a gradient check: a case for each tensor and each update.
pub(super) fn of_gradients(path: &Path, reports: &[GradientReport], seconds: f64) -> Result<String, Failure> {
    let class = path.display().to_string();
    let mut suite = TestSuite::new(format!("{NAME} --gradient {class}"));
    for r in reports {
        let failures = gradient::report::failures(std::slice::from_ref(r));
        let names = r.tensors.iter().map(|t| format!("gradient {}", t.name));
        for name in names.chain(r.updates.iter().map(|u| format!("update {}", u.name))) {
            let problem = failures.iter().find(|(n, _)| *n == name).map(|(_, m)| (m.clone(), m.clone()));
            suite.add_test_case(case(&format!("{name} ({})", r.gradients), &class, status(problem)));
        }
    }
    suite.set_time(Duration::from_secs_f64(seconds));
    serialize(suite)
}

/// The report of a check of these files that could not be made.
pub(super) fn unchecked(files: &str, failure: &Failure) -> Result<String, Failure> {
    let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
    status.set_message(failure.what.clone()).set_type(UNCHECKED).set_description(failure.to_string());
    let mut suite = TestSuite::new(format!("{NAME} {files}"));
    suite.add_test_case(case("verify", files, status));
    serialize(suite)
}

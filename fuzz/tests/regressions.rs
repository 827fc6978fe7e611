//! Every case that once was a finding, and every input of the corpus, shows nothing that must not be.

use ancre_fuzz::course;
use ancre_fuzz::guard::{self, Counting};
use ancre_fuzz::seeds;
use std::path::Path;

#[global_allocator]
static MEMORY: Counting = Counting;

#[test]
fn nothing_that_was_found_comes_back() {
    guard::note_panics();
    guard::watch();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut wrong = Vec::new();
    for (path, case) in seeds::of_directory(&corpus.join("regressions")).into_iter().chain(seeds::of_directory(&corpus)) {
        let outcome = course::run(&case);
        wrong.extend(outcome.faults.iter().map(|f| format!("{}: {}\n  {}", path.display(), f.kind, f.detail)));
        if course::run(&case).emitted != outcome.emitted {
            wrong.push(format!("{}: two runs write different files", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

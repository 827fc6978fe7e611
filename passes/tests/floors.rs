//! The floor plan at the top of each crate's `lib.rs` holds: a module uses modules of lower floors only, so that no two modules
//! lean on one another. Imports are read as text. `BLESS=1` draws the plan of docs/design.md anew.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A crate's plan and its imports.
struct House {
    /// Floor by module, from the table in `lib.rs`.
    floor: BTreeMap<String, usize>,
    /// Who imports whom, and one file that does.
    arrows: BTreeMap<(String, String), String>,
}

fn house(sources: &Path) -> House {
    let lib = std::fs::read_to_string(sources.join("lib.rs")).unwrap();
    let rows = lib.lines().filter_map(|l| l.strip_prefix("//! | ")).filter_map(|l| l.split_once(" | "));
    let mut floor = BTreeMap::new();
    for (number, rest) in rows {
        let Ok(number) = number.trim().parse::<usize>() else { continue };
        let names = rest.split('|').next().unwrap();
        floor.extend(names.split('`').skip(1).step_by(2).map(|name| (name.to_string(), number)));
    }
    let modules: BTreeSet<&str> =
        lib.lines().filter_map(|l| l.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')).collect();
    let planned: BTreeSet<&str> = floor.keys().map(String::as_str).collect();
    let homeless: Vec<_> = modules.difference(&planned).collect();
    assert!(homeless.is_empty(), "{homeless:?} stand on no floor of the plan in {}/lib.rs", sources.display());
    let mut arrows = BTreeMap::new();
    let mut files = Vec::new();
    collect(sources, &mut files);
    for file in files {
        let place = file.strip_prefix(sources).unwrap().with_extension("");
        let mut module: Vec<String> = place.iter().map(|p| p.to_str().unwrap().to_string()).collect();
        module.retain(|p| p != "mod");
        if module.iter().any(|p| p == "lib" || p == "main" || p.ends_with("tests")) {
            continue;
        }
        for used in imports(&std::fs::read_to_string(&file).unwrap(), module.len()) {
            if modules.contains(used.as_str()) && used != module[0] {
                arrows.entry((module[0].clone(), used)).or_insert(place.display().to_string());
            }
        }
    }
    House { floor, arrows }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// The crate's modules that a file at this depth of modules names, its tests left out.
fn imports(text: &str, depth: usize) -> BTreeSet<String> {
    let code: String = text
        .split("#[cfg(test)]\nmod ")
        .next()
        .unwrap()
        .lines()
        .map(|l| l.split("//").next().unwrap().to_string() + "\n")
        .collect();
    let word = |t: &str| t.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for root in ["crate::".to_string(), "super::".repeat(depth)] {
        for (at, _) in code.match_indices(&root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                None => found.extend([word(rest)]),
                Some(list) => {
                    let mut open = 0;
                    for (i, c) in list.char_indices() {
                        let starts = open == 0 && (i == 0 || list[..i].trim_end().ends_with(','));
                        match c {
                            '{' => open += 1,
                            '}' if open == 0 => break,
                            '}' => open -= 1,
                            c if starts && !c.is_whitespace() => found.extend([word(&list[i..])]),
                            _ => {}
                        }
                    }
                }
            }
        }
    }
    found
}

impl House {
    /// Arrows that do not go down.
    fn wrong(&self) -> Vec<String> {
        let wrong = |((from, to), file): (&(String, String), &String)| {
            let (a, b) = (self.floor[from], self.floor[to]);
            (a <= b).then(|| format!("{file}: `{from}` (floor {a}) uses `{to}` (floor {b})"))
        };
        self.arrows.iter().filter_map(wrong).collect()
    }

    /// The plan as a drawing.
    fn drawing(&self) -> String {
        let mut text = String::from("```mermaid\nflowchart TD\n");
        let top = self.floor.values().max().unwrap();
        for floor in (0..=*top).rev() {
            let rooms: Vec<&str> = self.floor.iter().filter(|(_, f)| **f == floor).map(|(m, _)| m.as_str()).collect();
            text += &format!("  f{floor}[\"{}\"]\n", rooms.join(" · "));
        }
        let chain: Vec<String> = (0..=*top).rev().map(|f| format!("f{f}")).collect();
        text + "  " + &chain.join(" --> ") + "\n```\n"
    }
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn arrows_between_modules_go_down() {
    let crates = ["passes/src", "src"].map(|c| (c, house(&top().join(c))));
    let wrong: Vec<String> =
        crates.iter().flat_map(|(c, h)| h.wrong().into_iter().map(move |w| format!("{c}/{w}"))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_drawing_is_of_the_plan() {
    let path = top().join("docs/design.md");
    let mut text = std::fs::read_to_string(&path).unwrap();
    let before = text.clone();
    for source in ["passes/src", "src"] {
        let (begin, end) = (format!("<!-- rooms of {source} -->\n"), format!("<!-- end of {source} -->"));
        let from = text.find(&begin).unwrap() + begin.len();
        let to = text.find(&end).unwrap();
        text.replace_range(from..to, &house(&top().join(source)).drawing());
    }
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    } else {
        assert!(text == before, "another plan: BLESS=1 draws docs/design.md anew");
    }
}

#[test]
fn an_arrow_up_is_seen_however_it_is_written() {
    let used = |text: &str, depth| imports(text, depth).into_iter().collect::<Vec<_>>();
    assert_eq!(used("use crate::{ir::{Graph, Op}, ops,\n  text};\n// crate::verify", 1), ["ir", "ops", "text"]);
    assert_eq!(used("fn f() { super::super::ops::rule(); super::near(); xcrate::y() }", 2), ["ops"]);
    assert_eq!(used("use crate::ir::Dim;\n#[cfg(test)]\nmod tests { use crate::text::parse; }", 1), ["ir"]);
    let floor = BTreeMap::from([("ir".to_string(), 0), ("ops".to_string(), 1)]);
    let arrow = |a: &str, b: &str| BTreeMap::from([((a.to_string(), b.to_string()), "a.rs".to_string())]);
    assert!(House { floor: floor.clone(), arrows: arrow("ops", "ir") }.wrong().is_empty());
    assert_eq!(House { floor, arrows: arrow("ir", "ops") }.wrong(), ["a.rs: `ir` (floor 0) uses `ops` (floor 1)"]);
}

//! What is compared: names, and the router's options that they stand for.

use crate::cli::Cli;
use crate::error::Failure;
use ancre_passes::ir::Rule;
use ancre_passes::transform::route::Preset;
use clap::parser::ValueSource;
use clap::{Arg, CommandFactory};
use serde::{Deserialize, Serialize};

/// The variant that the others are compared with.
pub(super) const BASE: &str = "cascaded";

/// The heading of the router's options in the main job's help.
const ROUTER: &str = "Router";

/// A variant of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Variant {
    pub(super) name: String,
    /// Options of the router.
    pub(super) flags: Vec<String>,
}

/// The variants that were asked for, the base first. Fails at the first that no name or options stand for.
pub(super) fn variants(asked: &[String]) -> Result<Vec<Variant>, Failure> {
    let default = ["default".to_string(), "paper".to_string()];
    let mut found = vec![Variant::of(BASE)?];
    for word in pieces(if asked.is_empty() { &default } else { asked }) {
        let variant = Variant::of(&word)?;
        match found.iter().find(|v| v.name == variant.name) {
            Some(v) if *v == variant => {}
            Some(_) => return Err(Failure::input(format!("--variants: `{}` is the name of two variants", variant.name))),
            None => found.push(variant),
        }
    }
    Ok(found)
}

/// The words between commas. A comma among a variant's own options (`--chains 0,2`) separates nothing.
fn pieces(asked: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for text in asked {
        let mut within = false;
        for piece in text.split(',') {
            let begins =
                piece.split_once('=').is_some_and(|(name, options)| is_name(name) && options.trim_start().starts_with('-'));
            match out.last_mut() {
                Some(open) if within && !begins && flags_of(piece.trim()).is_none() => {
                    open.push(',');
                    open.push_str(piece);
                }
                _ => {
                    out.push(piece.to_string());
                    within = begins;
                }
            }
        }
    }
    out.into_iter().map(|w| w.trim().to_string()).filter(|w| !w.is_empty()).collect()
}

/// Names are names of folders too.
fn is_name(text: &str) -> bool {
    let first = text.trim().chars().next();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    first.is_some_and(|c| c.is_ascii_alphanumeric()) && text.trim().chars().all(plain)
}

/// The options that a known name stands for.
fn flags_of(name: &str) -> Option<Vec<String>> {
    let of = |option: &str, word: &str| Some(vec![option.to_string(), word.to_string()]);
    match name {
        BASE => of("--chains", "none"),
        "default" => Some(Vec::new()),
        _ if Preset::WORDS.contains(&name) => of("--preset", name),
        _ if Rule::WORDS.contains(&name) => of("--parametrization", name),
        _ => None,
    }
}

impl Variant {
    fn of(word: &str) -> Result<Variant, Failure> {
        if let Some(flags) = flags_of(word) {
            return Ok(Variant { name: word.into(), flags });
        }
        let custom = word.split_once('=').map(|(name, options)| (name.trim(), options));
        let Some((name, options)) = custom.filter(|(name, _)| is_name(name)) else {
            let known = ["default"].iter().chain(Preset::WORDS).chain(Rule::WORDS).copied().collect::<Vec<_>>().join(", ");
            return Err(Failure::input(format!("--variants: `{word}` is no variant"))
                .help(format!("{BASE}, {known}, or NAME=OPTIONS such as 'wide=--scope network --tau 0.1'")));
        };
        if flags_of(name).is_some() {
            return Err(Failure::input(format!("--variants: `{name}` is the name of a variant already")));
        }
        let flags: Vec<String> = options.split_whitespace().map(String::from).collect();
        let line = ["ancre-rewrite", "model.onnx"].into_iter().chain(flags.iter().map(String::as_str));
        let mut command = Cli::command();
        let read = command.try_get_matches_from_mut(line);
        let fail = |why: &str| {
            Failure::input(format!("--variants: the options of `{name}`: {why}"))
                .help("options of the router, as `ancre-rewrite --help` lists them; what is said outside of --variants holds for all")
        };
        let read = read.map_err(|e| fail(e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ")))?;
        let given = |a: &&Arg| read.value_source(a.get_id().as_str()) == Some(ValueSource::CommandLine);
        let others = command.get_arguments().filter(|a| a.get_help_heading() != Some(ROUTER) && a.get_id() != "model");
        match others.filter(given).find_map(Arg::get_long) {
            Some(other) => Err(fail(&format!("--{other} is none of the router's"))),
            None if read.subcommand_name().is_some() => Err(fail("a verb is no option")),
            None => Ok(Variant { name: name.into(), flags }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        let found = variants(&[text.to_string()]).map_err(|e| e.what)?;
        Ok(found.into_iter().map(|v| (v.name, v.flags.join(" "))).collect())
    }

    #[test]
    fn variants_are_read_with_commas_among_their_options() {
        let text = "default,some=--chains 0,2 --tau 0.1,paper, free,wide=--scope network,cascaded";
        let expected = [
            ("cascaded", "--chains none"),
            ("default", ""),
            ("some", "--chains 0,2 --tau 0.1"),
            ("paper", "--preset paper"),
            ("free", "--parametrization free"),
            ("wide", "--scope network"),
        ];
        assert_eq!(read(text).unwrap(), expected.map(|(n, f)| (n.to_string(), f.to_string())));
        assert_eq!(variants(&[]).unwrap().len(), 3);
    }

    #[test]
    fn what_is_no_variant_is_refused_by_name() {
        for (text, said) in [
            ("papr", "`papr` is no variant"),
            ("a/b=--tau 1", "is no variant"),
            ("x=--tua 1", "the options of `x`: unexpected argument '--tua' found"),
            ("x=--scope network --lora 4", "the options of `x`: --lora is none of the router's"),
            ("x=-o y", "the options of `x`: --out is none of the router's"),
            ("x=--tau 1,x=--tau 2", "`x` is the name of two variants"),
            ("paper=--tau 1", "is the name of a variant already"),
        ] {
            let e = read(text).unwrap_err();
            assert!(e.contains(said), "{text}: {e}");
        }
    }
}

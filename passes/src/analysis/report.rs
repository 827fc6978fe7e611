//! stub
#![allow(missing_docs)]
use crate::ir::*; use super::residual::*;
pub fn draw(_: &Graph, _: &ResidualStructure) -> String { String::new() }
pub fn why(_: &Graph, _: &ResidualStructure, _: &str) -> Option<String> { None }
pub fn rejected(_: &Graph, _: &ResidualStructure) -> String { String::new() }
pub fn inspect_text(_: &Graph, s: &ResidualStructure) -> String { format!("{} chains: {:?}\n", s.chains.len(), s.chains.iter().map(|c| c.joins.len()).collect::<Vec<_>>()) }
pub fn inspect_json(_: &Graph, _: &ResidualStructure, _: &str) -> serde_json::Value { serde_json::json!({}) }

//! Small networks, one line an operator: `y = Op x other:shape` (operands with a shape are constants made on the spot).

mod joins;
mod near_misses;
mod runs;

use super::*;
use crate::analysis::types::resolve_types;
use crate::analysis::{dot, explain, report};
use crate::ir::{Attrs, DType, Dim, Op, Tensor, TensorType};

fn dims(text: &str) -> Vec<Dim> {
    text.split('x')
        .filter(|t| !t.is_empty())
        .map(|t| t.parse().map_or_else(|_| Dim::symbol(t), |n: i64| Dim::from(n)))
        .collect()
}

fn constant(g: &mut Graph, name: &str, shape: &str) -> ValueId {
    let dims: Vec<i64> = dims(shape).iter().map(|d| d.known().unwrap()).collect();
    let n = dims.iter().product::<i64>() as usize;
    g.add_initializer(name, Tensor::f32s(&dims, &vec![0.5; n]), false)
}

fn operand(g: &mut Graph, word: &str) -> Option<ValueId> {
    if word == "-" {
        return None;
    }
    let (name, shape) = word.split_once(':').unwrap_or((word, ""));
    Some(match g.find(name) {
        Some(v) => v,
        None => constant(g, name, shape),
    })
}

/// Reads the lines `x = input f32 1x4`, `p = param 1x4`, `a, b = Op operands`, `output a b`. A value of an attribute that is no integer is a word. A type after `!` is set by hand.
fn net(lines: &str) -> Graph {
    extend(Graph::default(), lines)
}

/// The same on top of constants that are there already.
fn extend(mut g: Graph, lines: &str) -> Graph {
    g.opsets.insert("com.microsoft".into(), 1);
    g.opsets.insert("com.microsoft.nchwc".into(), 1);
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some(names) = line.strip_prefix("output ") {
            for name in names.split(' ') {
                let v = g.find(name).unwrap();
                g.add_output(v, None);
            }
            continue;
        }
        let (line, ty) = line.split_once('!').unwrap_or((line, ""));
        let (results, rest) = line.split_once(" = ").unwrap();
        let words: Vec<&str> = rest.split(' ').filter(|w| !w.is_empty()).collect();
        match words[0] {
            "input" => {
                let dtype = if words[1] == "i64" { DType::I64 } else { DType::F32 };
                g.add_input(results, TensorType::new(dtype, dims(words[2])).into(), None);
            }
            "param" => {
                constant(&mut g, results, words[1]);
            }
            name => {
                let (domain, name) = match name.rsplit_once('.') {
                    None => ("", name),
                    Some(("nchwc", name)) => ("com.microsoft.nchwc", name),
                    Some((_, name)) => ("com.microsoft", name),
                };
                let mut attrs = Attrs::new();
                let mut operands = Vec::new();
                for w in &words[1..] {
                    match w.split_once('=') {
                        Some((key, list)) => {
                            let ints: Result<Vec<i64>, _> = list.split(',').map(str::parse).collect();
                            attrs = match ints.as_deref() {
                                Ok([only]) => attrs.with(key, *only),
                                Ok(all) => attrs.with(key, all.to_vec()),
                                Err(_) => attrs.with(key, list),
                            };
                        }
                        None => operands.push(operand(&mut g, w)),
                    }
                }
                let node = g.add_op(&format!("n_{results}"), Op::in_domain(domain, name, attrs), &operands);
                for r in results.split(", ") {
                    let ty = match ty.trim() {
                        "" => ValueType::default(),
                        t => TensorType::new(DType::F32, dims(t)).into(),
                    };
                    g.push_result(node, r, ty);
                }
            }
        }
    }
    resolve_types(&mut g, None);
    g
}

fn chains(s: &ResidualStructure) -> Vec<usize> {
    s.chains.iter().map(|c| c.joins.len()).collect()
}

fn states<'g>(g: &'g Graph, c: &Chain) -> Vec<&'g str> {
    c.states.iter().map(|v| g.name(*v)).collect()
}

fn reason_for(g: &Graph, s: &ResidualStructure, sum: &str) -> String {
    let node = g.find(sum).unwrap().node;
    let found = s.rejected.iter().find(|r| r.node == node);
    found.map(|r| r.reason.clone()).unwrap_or_else(|| panic!("`{sum}` is not among the rejected"))
}

//! stub
#![allow(missing_docs)]
use crate::ir::*;
#[derive(Clone)]
pub enum JoinKind { Identity, Projection }
#[derive(Clone)]
pub struct Join {
    pub node: NodeId,
    pub skip_operand: usize,
    pub kind: JoinKind,
    pub state: ValueId,
    pub entry: (NodeId, usize),
    pub direct: bool,
    pub scaled_skip: bool,
    pub scaled_branch: bool,
    pub signature: Vec<String>,
}
pub enum Post { None, Other(String) }
pub struct Chain {
    pub id: usize, pub joins: Vec<Join>, pub states: Vec<ValueId>,
    pub ty: ValueType, pub post: Post, pub scaled: bool, pub signature: String, pub period: usize,
}
pub struct Rejected { pub node: NodeId, pub reason: String }
pub struct ResidualStructure { pub chains: Vec<Chain>, pub projections: Vec<Join>, pub rejected: Vec<Rejected> }
pub fn find_residuals(g: &Graph) -> ResidualStructure {
    let mut chains: Vec<Chain> = vec![];
    for id in g.topological_order().unwrap() {
        if !g.is_op(id, "Add") { continue }
        let ops = g.operands(id);
        let (a, b) = (ops[0].unwrap(), ops[1].unwrap());
        if g.tensor_type(a) != g.tensor_type(b) || !g.is_float(a) { continue }
        for (i, s, br) in [(0, a, b), (1, b, a)] {
            if g.initializer(s).is_some() { continue }
            let mut seen = std::collections::HashMap::new();
            let mut stack = vec![(br, false)];
            let mut hit = false; let mut sig = vec![];
            while let Some((v, mixed)) = stack.pop() {
                if v == s { if mixed { hit = true; } continue }
                if seen.len() > 120 { continue }
                if seen.insert((v, mixed), ()).is_some() { continue }
                let m = g.op(v.node).is_some_and(|o| matches!(o.name.as_str(), "Conv" | "MatMul" | "Gemm"));
                if m { sig.push("M".to_string()); }
                for o in g.reads(v.node) { stack.push((o, mixed || m)); }
            }
            if !hit { continue }
            let out = g.result(id, 0);
            let state = match g.single_use(out) { Some((n, _)) if g.is_op(n, "Relu") => g.result(n, 0), _ => out };
            let j = Join { node: id, skip_operand: i, kind: JoinKind::Identity, state: s, entry: (id, i), direct: true, scaled_skip: false, scaled_branch: false, signature: sig };
            match chains.iter_mut().find(|c| c.states.last() == Some(&s)) {
                Some(c) => { c.joins.push(j); c.states.push(state) }
                None => { let id = chains.len(); chains.push(Chain { id, joins: vec![j], states: vec![s, state], ty: g.value(s).ty.clone(), post: Post::None, scaled: false, signature: String::new(), period: 1 }) }
            }
            break;
        }
    }
    for c in &mut chains {
        if c.joins.len() > 3 && c.joins[0].signature.len() != c.joins[1].signature.len() { c.period = 2 }
    }
    ResidualStructure { chains, projections: vec![], rejected: vec![] }
}

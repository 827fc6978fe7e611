//! stub
#![allow(missing_docs)]
use crate::ir::*;
pub enum JoinKind { Identity, Projection }
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

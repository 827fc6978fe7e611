//! From a graph's nodes to terms.

use super::infer;
use super::subgraph;
use super::term::{Args, AttrKey, Granted, Head, MOST, OpKey, Table, Term, TermId};
use crate::ir::{Attr, Graph, Kind, NodeId, Op, TensorType, ValueId, ValueType};
use crate::onnx::schema::{meaning::Use, versions};
use crate::onnx::short_domain;
use crate::ops::eval::{Array, Bounded, Call, Operand, evaluate, is_evaluated, reads_type};
use crate::ops::is_random;
use onnx_protobuf::Message;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Does an operator of this name give something else each time? `Dropout` does while it trains.
fn draws(name: &str) -> bool {
    is_random(name) || name == "Dropout"
}

/// One graph while it is turned into terms.
pub(super) struct Side<'g> {
    pub(super) graph: &'g Graph,
    /// 0 for the first graph, 1 for the second.
    pub(super) index: usize,
    /// Domains whose operator set the two graphs have in different versions.
    pub(super) versions_differ: bool,
    /// The bodies of local functions, in bytes.
    functions: Vec<u8>,
    /// Names of local functions, with their domains.
    local: HashSet<(String, String)>,
    /// Does the body of one give something else each time?
    local_random: bool,
    terms: HashMap<ValueId, TermId>,
    /// Places of nodes in the order they were read in.
    places: HashMap<NodeId, usize>,
}

/// A node that is being turned into terms.
pub(super) struct Site<'a, 'g> {
    pub(super) op: &'g Op,
    pub(super) args: &'a [TermId],
    pub(super) opset: i64,
    /// Types of the results.
    pub(super) types: Vec<ValueType>,
    pub(super) results: usize,
}

impl Site<'_, '_> {
    pub(super) fn arg(&self, i: usize) -> TermId {
        self.args.get(i).copied().unwrap_or(TermId::NONE)
    }

    /// Type of the first result, if known.
    pub(super) fn ty(&self) -> Option<TensorType> {
        self.types.first().and_then(ValueType::tensor)
    }
}

impl<'g> Side<'g> {
    pub(super) fn new(graph: &'g Graph, index: usize, versions_differ: bool) -> Side<'g> {
        let bodies = &graph.shell.functions;
        Side {
            graph,
            index,
            versions_differ,
            functions: bodies.iter().flat_map(|f| f.write_to_bytes().unwrap_or_default()).collect(),
            local: bodies.iter().map(|f| (short_domain(&f.domain).to_string(), f.name.clone())).collect(),
            local_random: bodies.iter().flat_map(|f| &f.node).any(|n| subgraph::holds(n, &draws)),
            terms: HashMap::new(),
            places: HashMap::new(),
        }
    }

    /// Is it an operator of the standard domain that means the same in both graphs?
    pub(super) fn is_standard(&self, op: &Op) -> bool {
        op.domain.is_empty() && !self.versions_differ && !self.local.contains(&(op.domain.clone(), op.name.clone()))
    }

    /// The term of a value.
    pub(super) fn term(&self, v: ValueId) -> Option<TermId> {
        self.terms.get(&v).copied()
    }

    /// Place of a value's node in the order of the graph.
    pub(super) fn place(&self, v: ValueId) -> usize {
        self.places.get(&v.node).copied().unwrap_or(usize::MAX)
    }

    /// Turns every node that an output depends on into terms.
    pub(super) fn read(&mut self, t: &mut Table<'g>, order: &[NodeId]) {
        for id in order {
            self.places.insert(*id, self.places.len());
            let terms = self.node(t, *id);
            for (v, term) in self.graph.results(*id).zip(terms) {
                self.terms.insert(v, term);
                let info = t.info_mut(term);
                info.origin[self.index].get_or_insert(v);
            }
        }
    }

    fn node(&self, t: &mut Table<'g>, id: NodeId) -> Vec<TermId> {
        let g = self.graph;
        match &g.node(id).kind {
            Kind::Input(_) => {
                let v = g.result(id, 0);
                let ty = g.value(v).ty.clone();
                vec![t.intern(Head::Input(g.name(v).to_string()), Args::new(), ty)]
            }
            Kind::Initializer { tensor, .. } => {
                let c = t.constants.of_tensor(tensor);
                vec![t.constant(c)]
            }
            Kind::Op(op) => {
                if op.is("Constant")
                    && let Some(Attr::Tensor(tensor)) = op.attrs.get("value")
                {
                    let c = t.constants.of_tensor(tensor);
                    return vec![t.constant(c)];
                }
                self.operator(t, id, op)
            }
        }
    }

    fn operator(&self, t: &mut Table<'g>, id: NodeId, op: &'g Op) -> Vec<TermId> {
        let g = self.graph;
        let term_of = |v: Option<ValueId>| v.and_then(|v| self.term(v)).unwrap_or(TermId::NONE);
        let mut args: Args = g.operands(id).iter().map(|v| term_of(*v)).collect();
        while args.last() == Some(&TermId::NONE) {
            args.pop();
        }
        let results = g.node(id).results().len();
        let (mut types, refused) = infer::types(t, self, id, op, &args);
        types.resize(results, ValueType::default());
        let opset = g.opsets.get("").copied().unwrap_or(18);
        let local = self.local.contains(&(op.domain.clone(), op.name.clone()));
        let site = Site { op, args: &args, opset, types, results };
        if op.domain.is_empty()
            && !local
            && !refused
            && let Some(terms) = t.rules(&site)
        {
            return terms;
        }
        self.as_it_is(t, id, site, local)
    }

    /// An operator that no rule knows more about.
    fn as_it_is(&self, t: &mut Table<'g>, id: NodeId, site: Site<'_, 'g>, local: bool) -> Vec<TermId> {
        let (g, op) = (self.graph, site.op);
        let in_subgraph = |a: &Attr| matches!(a, Attr::Opaque(a) if subgraph::of(a).flat_map(|g| &g.node).any(|n| subgraph::holds(n, &draws)));
        let random = is_random(&op.name)
            || (local && self.local_random)
            || (op.is("Dropout") && !is_inference_dropout(t, &site))
            || op.attrs.0.values().any(in_subgraph);
        let captures: Vec<ValueId> = g.captures(id).collect();
        let captured: Vec<&str> = captures.iter().map(|v| g.name(*v)).collect();
        let Some(mut attrs) = t.attributes(op, &site, &captured) else {
            return site.types.iter().map(|ty| t.unique(ty.clone())).collect();
        };
        if random {
            // A rewrite keeps the names of the source's values.
            let drawn = g.results(id).map(|v| g.name(v)).find(|name| !name.is_empty()).unwrap_or_default();
            attrs.push(("draw".into(), AttrKey::Str(drawn.to_string())));
            t.granted.insert(Granted::SameDraw(g.site(id).to_string()));
        }
        if local {
            attrs.push(("body".into(), AttrKey::Bytes(self.functions.clone())));
            let overload = op.source.as_ref().map(|n| n.overload.clone()).unwrap_or_default();
            attrs.push(("overload".into(), AttrKey::Str(overload)));
        } else if !op.domain.is_empty() {
            t.granted.insert(Granted::Deterministic(op.full_name()));
        }
        if !captures.is_empty() {
            attrs.push(("operands".into(), AttrKey::Int(site.args.len() as i64)));
        }
        let mut args: Args = site.args.into();
        if op.domain.is_empty() && op.name.starts_with("Reduce") && t.reduced_axes(&site, &mut attrs) {
            args.truncate(1);
        }
        args.extend(captures.iter().map(|v| self.term(*v).unwrap_or(TermId::NONE)));
        let mut name = op.full_name();
        order_operands(&mut name, &mut args);
        let version = self.version_key(&site, !captures.is_empty());
        let counted = !op.domain.is_empty() || !RESULTS_ASIDE.contains(&op.name.as_str());
        let results = if site.results > 1 && counted { site.results as u32 } else { 0 };
        let key = OpKey { name, attrs, version, results };
        t.application(key, args, &site, op)
    }

    /// Part of an operator's key: the last operator set that changed its meaning in a way that attributes and operands do not
    /// tell. 0 where none did, or where the two graphs have the same operator sets.
    fn version_key(&self, site: &Site, has_subgraph: bool) -> i64 {
        let op = site.op;
        if !self.versions_differ {
            return 0;
        }
        if !op.domain.is_empty() {
            return self.graph.opsets.get(&op.domain).copied().unwrap_or(0) + 1;
        }
        let opaque = has_subgraph || op.attrs.0.values().any(|a| matches!(a, Attr::Opaque(_)));
        if opaque || versions("", &op.name).is_empty() {
            return site.opset + 1;
        }
        let node = Use { results: site.types.clone(), ..Use::untyped(op, site.args.len(), 0) };
        node.last_change(0, site.opset, site.opset).unwrap_or(0)
    }
}

/// Operators whose first results do not depend on how many are asked for.
const RESULTS_ASIDE: &[&str] = &["Dropout", "MaxPool", "LayerNormalization", "TopK", "LSTM", "GRU", "RNN"];

/// Brings operands that may be exchanged into one order.
pub(super) fn order_operands(name: &mut String, args: &mut Args) {
    if let Some(rest) = name.strip_prefix("Greater") {
        *name = format!("Less{rest}");
        args.reverse();
    }
    if commutes(name, args.len()) {
        args.sort_unstable();
    }
}

/// May the operands be exchanged?
pub(super) fn commutes(name: &str, operands: usize) -> bool {
    match name {
        "Add" | "Mul" | "Equal" | "And" | "Or" | "Xor" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "Sum" => operands == 2,
        "Max" | "Min" => true,
        _ => false,
    }
}

pub(super) fn is_inference_dropout(t: &mut Table, site: &Site) -> bool {
    match site.arg(2) {
        TermId::NONE => true,
        training => t.ints(training) == Some(vec![0]),
    }
}

impl<'g> Table<'g> {
    /// An operator application that is compared as a whole, or the constant it comes to.
    fn application(&mut self, key: OpKey, args: Args, site: &Site<'_, 'g>, op: &'g Op) -> Vec<TermId> {
        let single = site.results == 1;
        let head = Head::Op(Rc::new(key));
        let mut known = None;
        if single && op.domain.is_empty() {
            let term = Term { head: head.clone(), args: args.clone() };
            if let Some(t) = self.folded.get(&term) {
                return vec![*t];
            }
            known = self.evaluated(site);
            if let Some(t) = known.clone().and_then(|k| self.of_known(k)) {
                self.did("constants folded");
                self.folded.insert(term, t);
                return vec![t];
            }
        }
        let first = site.types.first().cloned().unwrap_or_default();
        if single {
            let t = self.intern(head, args, first);
            if let Some(k) = known {
                self.info_mut(t).known = Some(Rc::new(k));
            }
            return vec![t];
        }
        let whole = self.intern(head, args, ValueType::default());
        (0..site.results as u32)
            .map(|slot| self.intern(Head::Result(slot), [whole].as_slice(), site.types[slot as usize].clone()))
            .collect()
    }

    /// The elements of an operator's only result, if its operands are known well enough and every engine must agree on it.
    fn evaluated(&mut self, s: &Site<'_, 'g>) -> Option<Array<Bounded>> {
        let name = s.op.name.as_str();
        if !is_evaluated(name) {
            return None;
        }
        let mut arrays = Vec::with_capacity(s.args.len());
        for (i, a) in s.args.iter().enumerate() {
            let elements = *a != TermId::NONE && !reads_type(name, i);
            arrays.push(if elements { Some(self.known(*a)?) } else { None });
        }
        let mut operands: Vec<Operand<Bounded>> = Vec::with_capacity(arrays.len());
        for (a, array) in s.args.iter().zip(&arrays) {
            operands.push(match array {
                Some(array) => Operand::Array(array),
                None if *a == TermId::NONE => Operand::Missing,
                None => Operand::Type(self.info(*a).ty.clone()),
            });
        }
        let call = Call { op: s.op, opset: s.opset, operands: &operands, results: s.results, most: MOST };
        evaluate(&call)?.pop()
    }

    /// Writes the axes of a reduction as an attribute, whether the operator set has them as an operand or an attribute. Returns
    /// whether that was possible.
    fn reduced_axes(&mut self, s: &Site<'_, 'g>, attrs: &mut Vec<(String, AttrKey)>) -> bool {
        let Some(rank) = self.shape(s.arg(0)).map(|d| d.len() as i64) else { return false };
        let listed = match (s.op.attrs.ints("axes"), s.arg(1)) {
            (Some(list), _) => Some(list.to_vec()),
            (None, TermId::NONE) => Some(Vec::new()),
            (None, axes) => self.ints(axes),
        };
        let Some(listed) = listed else { return false };
        let mut axes: Vec<i64> = listed.iter().map(|a| if *a < 0 { a + rank } else { *a }).collect();
        if axes.is_empty() {
            if s.op.int("noop_with_empty_axes") != 0 {
                return false;
            }
            axes = (0..rank).collect();
        }
        axes.sort_unstable();
        attrs.retain(|(name, _)| name != "axes" && name != "noop_with_empty_axes");
        attrs.insert(0, ("axes".into(), AttrKey::Ints(axes)));
        true
    }
}

//! Inlines model-local functions, so that analysis and differentiation see inside.
//!
//!   before  y = my.Block <alpha = 2> (x, w)             my.Block (a, b) => (c) { t = MatMul (a, b)  c = Elu <alpha: @alpha> (t) }
//!   after   t' = MatMul (x, w)   y = Elu <alpha = 2> (t')
//!
//! Works on messages, before import: a function's body is nothing but nodes. Calls within subgraphs are inlined there. A call is left
//! alone where its function is written for another version of an operator set that the model has too; it may not lead back to
//! itself either. Functions that nothing calls any more are dropped.

use super::import::{captured_names, op_of};
use super::{attributes, name_of, schema, short_domain, subgraphs, subgraphs_mut, take_name};
use onnx_protobuf::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use std::collections::{HashMap, HashSet};

/// Calls within calls above which the functions are taken for recursive.
const DEEPEST: usize = 64;
/// Nodes and calls that inlining may lead to.
const MOST_NODES: usize = 1 << 20;

/// Why functions cannot be inlined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum InlineError {
    #[error("its functions expand to more than {MOST_NODES} nodes")]
    Nodes,
    #[error("function `{0}` calls itself, or calls are nested more than {DEEPEST} deep")]
    Deep(String),
    #[error("its functions call each other more than {MOST_NODES} times")]
    Calls,
    #[error("function `{0}` defines `{1}` twice; value names must be unique in a function")]
    Duplicate(String, String),
    #[error("function `{0}`: its {1} {2}")]
    Body(String, String, String),
}

type Key = (String, String, String);

/// Inlines every call that can be; returns how many there were.
///
/// # Errors
/// When functions call each other in a circle, their bodies multiply beyond measure, or one is against the standard.
pub fn inline(model: &mut ModelProto) -> Result<usize, InlineError> {
    let Some(graph) = model.graph.as_mut() else { return Ok(0) };
    inline_functions(graph, &mut model.functions, &mut model.opset_import)
}

fn inline_functions(
    graph: &mut GraphProto,
    functions: &mut Vec<FunctionProto>,
    opsets: &mut Vec<OperatorSetIdProto>,
) -> Result<usize, InlineError> {
    let called = if functions.is_empty() { HashSet::new() } else { reached(graph, functions) };
    let in_use = || functions.iter().filter(|f| called.contains(&key_of(f)));
    if let Some(circular) = circular(in_use()) {
        return Err(InlineError::Deep(circular));
    }
    if let Some((f, name)) = in_use().find_map(|f| Some((f, defined_twice(f)?))) {
        return Err(InlineError::Duplicate(f.name.clone(), name.to_string()));
    }
    let bodies: HashMap<Key, &FunctionProto> = in_use().map(|f| (key_of(f), f)).collect();
    let mut checks = Checks { bodies: &bodies, done: HashSet::new() };
    in_use().try_for_each(|f| checks.body(f, &vec![true; f.input.len()]))?;
    checks.calls(&graph.node, &|_| true)?;
    let mut table: HashMap<Key, FunctionProto> = HashMap::new();
    for f in functions.iter() {
        let compatible = f.opset_import.iter().all(|o| version(opsets, &o.domain).is_none_or(|v| v == o.version));
        if compatible {
            table.insert(key_of(f), f.clone());
        }
    }
    let mut names = HashSet::new();
    collect(graph, &mut names);
    let mut inliner = Inliner { table, names, used: HashSet::new(), calls: 0, nodes: 0 };
    let nodes = std::mem::take(&mut graph.node);
    inliner.expand(nodes, 0, &mut graph.node)?;
    let Inliner { table, used, calls, .. } = inliner;
    for key in &used {
        for o in table.get(key).into_iter().flat_map(|f| &f.opset_import) {
            if version(opsets, &o.domain).is_none() {
                opsets.push(o.clone());
            }
        }
    }
    if calls > 0 {
        drop_unused(graph, functions);
    }
    Ok(calls)
}

fn version(opsets: &[OperatorSetIdProto], domain: &str) -> Option<i64> {
    opsets.iter().find(|o| short_domain(&o.domain) == short_domain(domain)).map(|o| o.version)
}

fn key(n: &NodeProto) -> Key {
    (short_domain(&n.domain).into(), n.op_type.clone(), n.overload.clone())
}

fn key_of(f: &FunctionProto) -> Key {
    (short_domain(&f.domain).into(), f.name.clone(), f.overload.clone())
}

/// Every name of a value in a graph and its subgraphs.
fn collect(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.input.iter().chain(&graph.output).map(|i| i.name.clone()));
    names.extend(graph.initializer.iter().map(|t| t.name.clone()));
    names.extend(graph.sparse_initializer.iter().map(|t| t.values.name.clone()));
    for n in &graph.node {
        names.extend(n.input.iter().chain(&n.output).cloned());
        subgraphs(n).for_each(|g| collect(g, names));
    }
}

fn calls(nodes: &[NodeProto], out: &mut HashSet<Key>) {
    for n in nodes {
        out.insert(key(n));
        subgraphs(n).for_each(|g| calls(&g.node, out));
    }
}

/// What a graph calls, and what that calls.
fn reached(graph: &GraphProto, functions: &[FunctionProto]) -> HashSet<Key> {
    let mut called = HashSet::new();
    calls(&graph.node, &mut called);
    let mut before = 0;
    while called.len() > before {
        before = called.len();
        let reached: Vec<&FunctionProto> = functions.iter().filter(|f| called.contains(&key_of(f))).collect();
        reached.iter().for_each(|f| calls(&f.node, &mut called));
    }
    called
}

/// A name that a function has for two of its operands and results of nodes.
fn defined_twice(f: &FunctionProto) -> Option<&str> {
    let mut defined = HashSet::new();
    let names = f.input.iter().chain(f.node.iter().flat_map(|n| &n.output)).filter(|name| !name.is_empty());
    names.map(String::as_str).find(|name| !defined.insert(*name))
}

/// Checks that the nodes of functions are as their schemas have them, for each way of leaving operands out that the file uses.
struct Checks<'f> {
    bodies: &'f HashMap<Key, &'f FunctionProto>,
    done: HashSet<(Key, Vec<bool>)>,
}

impl<'f> Checks<'f> {
    /// Checks a body for a call that gives some of its operands. Calls are not nested too deep.
    fn body(&mut self, f: &'f FunctionProto, given: &[bool]) -> Result<(), InlineError> {
        if !self.done.insert((key_of(f), given.to_vec())) {
            return Ok(());
        }
        if self.done.len() > MOST_NODES {
            return Err(InlineError::Calls);
        }
        let absent: HashSet<&String> = f.input.iter().zip(given).filter(|(_, given)| !**given).map(|(n, _)| n).collect();
        let there = |name: &String| !name.is_empty() && !absent.contains(name);
        let said = |op: &str, what: String| InlineError::Body(f.name.clone(), op.to_string(), what);
        let defined: HashSet<&String> = f.input.iter().chain(f.node.iter().flat_map(|n| &n.output)).collect();
        if let Some(name) = f.output.iter().find(|name| !defined.contains(name)) {
            return Err(said("result", format!("`{name}` is produced by nothing in it")));
        }
        // An operator set that is not named is read as its first version.
        let schema = |n: &NodeProto| {
            let known = version(&f.opset_import, &n.domain);
            let version = if short_domain(&n.domain).is_empty() { known? } else { known.unwrap_or(1) };
            schema::at_or_first(&n.domain, &n.op_type, version).filter(|_| !self.bodies.contains_key(&key(n)))
        };
        for n in &f.node {
            let captured = captured_names(n).unwrap_or_default();
            let mut read = n.input.iter().chain(&captured).filter(|name| !name.is_empty());
            if let Some(name) = read.find(|name| !defined.contains(name)) {
                return Err(said(&n.op_type, format!("reads `{name}`, which nothing in the function produces")));
            }
            if let Some(name) = captured.iter().find(|name| absent.contains(name)) {
                return Err(said(&n.op_type, format!("reads `{name}`, which a call leaves out")));
            }
            let counts = || {
                schema(n)?.miscounted(
                    last(&n.input, &there),
                    |i| there(&n.input[i]),
                    last(&n.output, &|name| !name.is_empty()),
                )
            };
            let attributes = || schema(n).filter(|s| s.domain.is_empty())?.misattributed(&op_of(n));
            if let Some(what) = attributes::fault(n).or_else(counts).or_else(attributes) {
                return Err(said(&n.op_type, what));
            }
        }
        self.calls(&f.node, &there)
    }

    /// Checks the calls among some nodes and in their subgraphs.
    fn calls(&mut self, nodes: &'f [NodeProto], there: &dyn Fn(&String) -> bool) -> Result<(), InlineError> {
        for n in nodes {
            for g in subgraphs(n) {
                self.calls(&g.node, there)?;
            }
            let Some(f) = self.bodies.get(&key(n)).copied() else { continue };
            let there = |name: &String| !name.is_empty() && there(name);
            let more = |what: &str, n: usize, most: usize| {
                InlineError::Body(
                    f.name.clone(),
                    "call".into(),
                    format!("has {n} {what}, more than the {most} of the function"),
                )
            };
            let (operands, results) = (last(&n.input, &there), last(&n.output, &|name| !name.is_empty()));
            if operands > f.input.len() {
                return Err(more("operands", operands, f.input.len()));
            }
            if results > f.output.len() {
                return Err(more("results", results, f.output.len()));
            }
            let given: Vec<bool> = (0..f.input.len()).map(|i| n.input.get(i).is_some_and(there)).collect();
            self.body(f, &given)?;
            let bound: HashSet<&str> = n.attribute.iter().chain(&f.attribute_proto).map(|a| a.name.as_str()).collect();
            if let Some((op, what)) = f.node.iter().find_map(|n| unbound(n, &bound)) {
                return Err(InlineError::Body(f.name.clone(), op, what));
            }
        }
        Ok(())
    }
}

/// An attribute that a node of a body needs, and that a call leaves out; with the node's operator.
fn unbound(n: &NodeProto, bound: &HashSet<&str>) -> Option<(String, String)> {
    let required = |a: &&AttributeProto| {
        schema::versions(&n.domain, &n.op_type).iter().any(|s| s.attribute(&a.name).is_some_and(|a| a.required))
    };
    let left_out = |a: &&AttributeProto| !a.ref_attr_name.is_empty() && !bound.contains(a.ref_attr_name.as_str());
    let a = n.attribute.iter().filter(left_out).find(required)?;
    Some((n.op_type.clone(), format!("lacks the attribute `{}`, as a call leaves `{}` out", a.name, a.ref_attr_name)))
}

/// The number of names up to the last that is there.
fn last(names: &[String], there: &dyn Fn(&String) -> bool) -> usize {
    names.iter().rposition(there).map_or(0, |last| last + 1)
}

/// A function that calls itself, or whose calls are nested too deep, whether it can be inlined now or not.
fn circular<'f>(functions: impl Iterator<Item = &'f FunctionProto> + Clone) -> Option<String> {
    let mut open: HashMap<Key, HashSet<Key>> = HashMap::new();
    for f in functions.clone() {
        calls(&f.node, open.entry(key_of(f)).or_default());
    }
    // Each round takes away what calls no function that is left.
    for _ in 0..DEEPEST {
        let done = |(_, inner): &(&Key, &HashSet<Key>)| inner.iter().all(|k| !open.contains_key(k));
        let done: Vec<Key> = open.iter().filter(done).map(|(k, _)| k.clone()).collect();
        if done.is_empty() {
            break;
        }
        done.iter().for_each(|k| _ = open.remove(k));
    }
    functions.into_iter().find(|f| open.contains_key(&key_of(f))).map(|f| f.name.clone())
}

fn drop_unused(graph: &GraphProto, functions: &mut Vec<FunctionProto>) {
    let called = reached(graph, functions);
    functions.retain(|f| called.contains(&key_of(f)));
}

struct Inliner {
    table: HashMap<Key, FunctionProto>,
    /// Every name that is taken.
    names: HashSet<String>,
    used: HashSet<Key>,
    calls: usize,
    nodes: usize,
}

impl Inliner {
    fn expand(&mut self, nodes: Vec<NodeProto>, depth: usize, out: &mut Vec<NodeProto>) -> Result<(), InlineError> {
        for mut n in nodes {
            let key = key(&n);
            let Some(f) = self.table.get(&key).cloned() else {
                for g in subgraphs_mut(&mut n) {
                    let nodes = std::mem::take(&mut g.node);
                    self.expand(nodes, depth, &mut g.node)?;
                }
                out.push(n);
                self.nodes += 1;
                if self.nodes > MOST_NODES {
                    return Err(InlineError::Nodes);
                }
                continue;
            };
            if depth >= DEEPEST {
                return Err(InlineError::Deep(n.op_type));
            }
            self.calls += 1;
            if self.calls > MOST_NODES {
                return Err(InlineError::Calls);
            }
            self.used.insert(key);
            let body = self.body(&n, f);
            self.expand(body, depth + 1, out)?;
        }
        Ok(())
    }

    /// The nodes that stand for one call.
    fn body(&mut self, call: &NodeProto, f: FunctionProto) -> Vec<NodeProto> {
        let stem = name_of(call);
        let mut names: HashMap<String, String> = HashMap::new();
        for (i, formal) in f.input.iter().enumerate() {
            names.insert(formal.clone(), call.input.get(i).cloned().unwrap_or_default());
        }
        // A result that is an operand, or that is given twice, cannot take the call's name: it is copied.
        let mut copies = Vec::new();
        for (formal, actual) in f.output.iter().zip(&call.output).filter(|(_, actual)| !actual.is_empty()) {
            if names.contains_key(formal) {
                copies.push((formal.clone(), actual.clone()));
            } else {
                names.insert(formal.clone(), actual.clone());
            }
        }
        let given: HashMap<&str, &AttributeProto> =
            f.attribute_proto.iter().chain(&call.attribute).map(|a| (a.name.as_str(), a)).collect();
        let mut body = Vec::with_capacity(f.node.len() + copies.len());
        for mut n in f.node.clone() {
            self.rename(&mut n, &stem, &mut names);
            bind(&mut n, &given);
            if !n.name.is_empty() {
                n.name = format!("{stem}/{}", n.name);
            }
            body.push(n);
        }
        for (formal, actual) in copies {
            let from = names.get(&formal).cloned().unwrap_or_default();
            body.push(NodeProto {
                name: format!("{stem}/{formal}"),
                op_type: "Identity".into(),
                input: vec![from],
                output: vec![actual],
                ..Default::default()
            });
        }
        body
    }

    /// The name in the graph of a name in a body.
    fn outer(&mut self, name: &str, stem: &str, names: &mut HashMap<String, String>) -> String {
        if name.is_empty() {
            return String::new();
        }
        if let Some(outer) = names.get(name) {
            return outer.clone();
        }
        let outer = take_name(&format!("{stem}/{name}"), &mut self.names);
        names.insert(name.to_string(), outer.clone());
        outer
    }

    fn rename(&mut self, n: &mut NodeProto, stem: &str, names: &mut HashMap<String, String>) {
        for name in n.input.iter_mut().chain(&mut n.output) {
            *name = self.outer(name, stem, names);
        }
        subgraphs_mut(n).for_each(|g| self.rename_graph(g, stem, names));
    }

    /// Renames the values of a body's subgraph: captured values as in the body, values of its own to new names.
    fn rename_graph(&mut self, g: &mut GraphProto, stem: &str, names: &HashMap<String, String>) {
        let mut names = names.clone();
        let own = g.input.iter().map(|i| &i.name).chain(g.initializer.iter().map(|t| &t.name));
        let own: Vec<String> = own.chain(g.node.iter().flat_map(|n| &n.output)).cloned().collect();
        for name in &own {
            names.remove(name);
        }
        for name in g.input.iter_mut().chain(&mut g.output).chain(&mut g.value_info).map(|i| &mut i.name) {
            *name = self.outer(name, stem, &mut names);
        }
        for t in &mut g.initializer {
            t.name = self.outer(&t.name, stem, &mut names);
        }
        for n in &mut g.node {
            self.rename(n, stem, &mut names);
        }
    }
}

/// Puts a call's attributes where a body refers to them. An attribute that the call leaves out and that has no default is left
/// out.
fn bind(n: &mut NodeProto, given: &HashMap<&str, &AttributeProto>) {
    n.attribute = std::mem::take(&mut n.attribute)
        .into_iter()
        .filter_map(|a| {
            if a.ref_attr_name.is_empty() {
                return Some(a);
            }
            let value = given.get(a.ref_attr_name.as_str())?;
            Some(AttributeProto { name: a.name, ..(*value).clone() })
        })
        .collect();
    subgraphs_mut(n).flat_map(|g| &mut g.node).for_each(|n| bind(n, given));
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_protobuf::attribute_proto::AttributeType;

    fn node(op: &str, domain: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let own = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        NodeProto {
            op_type: op.into(),
            domain: domain.into(),
            input: own(inputs),
            output: own(outputs),
            ..Default::default()
        }
    }

    fn float(name: &str, f: f32) -> AttributeProto {
        AttributeProto { name: name.into(), f, type_: AttributeType::FLOAT.into(), ..Default::default() }
    }

    fn function(name: &str, inputs: &[&str], outputs: &[&str], nodes: Vec<NodeProto>) -> FunctionProto {
        let own = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 18, ..Default::default() }];
        FunctionProto {
            name: name.into(),
            domain: "my".into(),
            input: own(inputs),
            output: own(outputs),
            node: nodes,
            opset_import,
            ..Default::default()
        }
    }

    fn opsets() -> Vec<OperatorSetIdProto> {
        [("", 18), ("my", 1)]
            .map(|(d, version)| OperatorSetIdProto { domain: d.into(), version, ..Default::default() })
            .into()
    }

    fn text(g: &GraphProto) -> Vec<String> {
        let one = |n: &NodeProto| {
            let attrs: Vec<String> = n.attribute.iter().map(|a| format!("{}={}", a.name, a.f)).collect();
            format!("{} = {}<{}>({})", n.output.join(","), n.op_type, attrs.join(","), n.input.join(","))
        };
        g.node.iter().map(one).collect()
    }

    #[test]
    fn nested_calls_bind_their_attributes() {
        let mut elu = node("Elu", "", &["a"], &["t"]);
        elu.attribute = vec![AttributeProto { name: "alpha".into(), ref_attr_name: "slope".into(), ..Default::default() }];
        let mut inner = function("Inner", &["a"], &["b"], vec![elu, node("Neg", "", &["t"], &["b"])]);
        inner.attribute_proto = vec![float("slope", 0.5)];
        let mut call = node("Inner", "my", &["m"], &["c"]);
        call.attribute = vec![AttributeProto { name: "slope".into(), ref_attr_name: "s".into(), ..Default::default() }];
        let mut outer = function("Outer", &["a", "w"], &["c", "a"], vec![node("MatMul", "", &["a", "w"], &["m"]), call]);
        outer.attribute = vec!["s".into()];
        let mut functions = vec![inner, outer];
        let mut first = node("Outer", "my", &["x", "w"], &["h", "copy"]);
        first.attribute = vec![float("s", 2.0)];
        let mut g = GraphProto { node: vec![first, node("Outer", "my", &["h", "w"], &["y"])], ..Default::default() };
        assert_eq!(inline_functions(&mut g, &mut functions, &mut opsets()).unwrap(), 4);
        assert_eq!(
            text(&g),
            [
                "h/m = MatMul<>(x,w)",
                "h/t = Elu<alpha=2>(h/m)",
                "h = Neg<>(h/t)",
                "copy = Identity<>(x)",
                "y/m = MatMul<>(h,w)",
                "y/t = Elu<alpha=0.5>(y/m)",
                "y = Neg<>(y/t)",
            ]
        );
        assert!(functions.is_empty());
    }

    #[test]
    fn a_body_for_another_operator_set_stays_a_call() {
        let mut f = function("F", &["a"], &["b"], vec![node("Relu", "", &["a"], &["b"])]);
        f.opset_import[0].version = 13;
        let mut g = GraphProto { node: vec![node("F", "my", &["x"], &["y"])], ..Default::default() };
        let mut functions = vec![f];
        assert_eq!(inline_functions(&mut g, &mut functions, &mut opsets()).unwrap(), 0);
        assert_eq!((g.node.len(), functions.len()), (1, 1));
    }

    #[test]
    fn functions_that_call_themselves_are_named() {
        // A function for another operator set stays a call, and is called in a circle no less.
        for version in [18, 13] {
            let mut f = function("F", &["a"], &["b"], vec![node("G", "my", &["a"], &["b"])]);
            f.opset_import[0].version = version;
            let g = function("G", &["a"], &["b"], vec![node("F", "my", &["a"], &["b"])]);
            let unused = function("H", &["a"], &["b"], vec![node("H", "my", &["a"], &["b"])]);
            let mut main = GraphProto { node: vec![node("F", "my", &["x"], &["y"])], ..Default::default() };
            let e = inline_functions(&mut main, &mut vec![unused, f, g], &mut opsets()).unwrap_err();
            assert!(e.to_string().contains("`F` calls itself"), "{e}");
        }
    }

    #[test]
    fn a_function_that_defines_a_name_twice_is_named() {
        let twice = vec![node("Relu", "", &["a"], &["b"]), node("Neg", "", &["a"], &["b"])];
        for body in [twice, vec![node("Relu", "", &["a"], &["a"])]] {
            let mut main = GraphProto { node: vec![node("F", "my", &["x"], &["y"])], ..Default::default() };
            let mut functions = vec![function("F", &["a"], &["b"], body)];
            let e = inline_functions(&mut main, &mut functions, &mut opsets()).unwrap_err().to_string();
            assert!(e.contains("function `F` defines `"), "{e}");
        }
    }

    #[test]
    fn operators_of_a_body_are_checked_though_its_calls_stay() {
        let mut slope = node("Relu", "", &["a"], &["b"]);
        slope.attribute = vec![float("slope", 1.0)];
        let short = node("Add", "", &["a"], &["b"]);
        let lost = node("Neg", "", &["z"], &["b"]);
        let cases =
            [(slope, "`F`: its Relu has an attribute `slope`"), (short, "its Add lacks"), (lost, "its Neg reads `z`")];
        for (body, said) in cases {
            let mut f = function("F", &["a"], &["b"], vec![body]);
            f.opset_import[0].version = 13;
            let mut main = GraphProto { node: vec![node("F", "my", &["x"], &["y"])], ..Default::default() };
            let e = inline_functions(&mut main, &mut vec![f], &mut opsets()).unwrap_err().to_string();
            assert!(e.contains(said), "{e}");
        }
    }

    #[test]
    fn calls_within_subgraphs_are_inlined_there() {
        let f = function("F", &["a"], &["b"], vec![node("Relu", "", &["a"], &["t"]), node("Neg", "", &["t"], &["b"])]);
        let branch = GraphProto { node: vec![node("F", "my", &["x"], &["z"])], ..Default::default() };
        let mut choice = node("If", "", &["c"], &["y"]);
        for name in ["then_branch", "else_branch"] {
            let g = Some(branch.clone()).into();
            choice.attribute.push(AttributeProto {
                name: name.into(),
                g,
                type_: AttributeType::GRAPH.into(),
                ..Default::default()
            });
        }
        let mut g = GraphProto { node: vec![choice], ..Default::default() };
        let mut functions = vec![f];
        assert_eq!(inline_functions(&mut g, &mut functions, &mut opsets()).unwrap(), 2);
        assert!(functions.is_empty());
        let branches: Vec<Vec<String>> = subgraphs(&g.node[0]).map(text).collect();
        assert_eq!(branches[0], ["z/t = Relu<>(x)", "z = Neg<>(z/t)"]);
        assert_eq!(branches[1], ["z/t_1 = Relu<>(x)", "z = Neg<>(z/t_1)"]);
    }
}

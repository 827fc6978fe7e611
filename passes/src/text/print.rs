//! Graphs as text.

use super::{inferred, is_bare};
use crate::ir::{Attr, Attrs, DType, Dim, Graph, Kind, NodeId, Sources, Sparsity, Tensor, TensorType, ValueId, ValueType};
use std::fmt::Write;

/// Tensors of more elements are elided where people read.
const MOST_ELEMENTS: usize = 16;
/// Longest line on which a header's list is not broken.
const LINE: usize = 120;

/// The whole graph with all elements of its initializers; [`super::parse`] reads it back.
pub fn print(g: &Graph) -> String {
    Printer { g, all: true }.graph()
}

/// The whole graph, long initializers elided.
pub fn outline(g: &Graph) -> String {
    Printer { g, all: false }.graph()
}

/// The operator nodes of a graph, each on a line of its own: `results = Op <attributes> (operands)`.
pub fn body(g: &Graph) -> String {
    Printer { g, all: false }.body("")
}

struct Printer<'g> {
    g: &'g Graph,
    all: bool,
}

impl Printer<'_> {
    fn graph(&self) -> String {
        let g = self.g;
        let mut out = self.imports();
        let inputs = g.inputs().iter().map(|n| self.source(*n)).collect();
        let outputs = g.outputs().iter().map(|o| typed(&g.value(o.value).ty, g.name(o.value))).collect();
        let declared = self.declared();
        let _ = write!(out, "{} {} => {}", name(&g.graph_shell.name), list(inputs), list(outputs));
        if !declared.is_empty() {
            let _ = write!(out, "\n<\n    {}\n>", declared.join(",\n    "));
        }
        let _ = write!(out, "\n{{\n{}}}\n", self.body("    "));
        out
    }

    fn imports(&self) -> String {
        let mut parts = Vec::new();
        let pairs = |all: Vec<(String, String)>| {
            all.into_iter().map(|(k, v)| format!("{} : {v}", quoted(&k))).collect::<Vec<_>>().join(", ")
        };
        if self.g.shell.ir_version != 8 {
            parts.push(format!("ir_version: {}", self.g.shell.ir_version));
        }
        if self.g.opsets.len() != 1 || self.g.opsets.get("") != Some(&18) {
            let all = self.g.opsets.iter().map(|(k, v)| (k.clone(), v.to_string())).collect();
            parts.push(format!("opset_import: [{}]", pairs(all)));
        }
        if !self.g.metadata.is_empty() {
            let all = self.g.metadata.iter().map(|(k, v)| (k.clone(), quoted(v))).collect();
            parts.push(format!("metadata_props: [{}]", pairs(all)));
        }
        if parts.is_empty() { String::new() } else { format!("<{}>\n", parts.join(", ")) }
    }

    /// A graph input or an initializer.
    fn source(&self, id: NodeId) -> String {
        let v = self.g.result(id, 0);
        let declaration = typed(&self.g.value(v).ty, self.g.name(v));
        match &self.g.node(id).kind {
            Kind::Initializer { tensor, .. } => {
                let own = tensor_type(tensor);
                let own = if own == self.g.value(v).ty { String::new() } else { format!("{} ", type_text(&own)) };
                format!("{declaration} = {own}{}", self.elements(tensor))
            }
            _ => declaration,
        }
    }

    /// Initializers that are no inputs, and the types that a reader could not infer.
    fn declared(&self) -> Vec<String> {
        let g = self.g;
        let listed: std::collections::HashSet<&NodeId> = g.inputs().iter().collect();
        let mut all = Vec::new();
        let mut stated = Vec::new();
        for id in g.topological_order() {
            match g.node(id).kind {
                Kind::Input(_) => {}
                Kind::Initializer { .. } if listed.contains(&id) => {}
                Kind::Initializer { .. } => all.push(self.source(id)),
                Kind::Op(_) => {
                    let rule = inferred(g, id).map(Option::unwrap_or_default);
                    let want = |slot: u32| {
                        let types = rule.as_ref().ok()?;
                        Some(types.get(slot as usize).cloned().map(ValueType::from).unwrap_or_default())
                    };
                    let named = g.results(id).filter(|v| !g.name(*v).is_empty() && !g.is_output(*v));
                    let open = named.filter(|v| want(v.slot).as_ref() != Some(&g.value(*v).ty));
                    stated.extend(open.map(|v| typed(&g.value(v).ty, g.name(v))));
                }
            }
        }
        all.extend(stated);
        all
    }

    fn body(&self, indent: &str) -> String {
        let g = self.g;
        let mut out = String::new();
        for id in g.topological_order() {
            let node = g.node(id);
            let Kind::Op(op) = &node.kind else { continue };
            let results: Vec<String> = node.results().iter().map(|v| name(&v.name)).collect();
            let operands = if g.operands(id) == [None] { "(\"\")".into() } else { self.values(g.operands(id)) };
            let attrs = self.attrs(&op.attrs);
            let first = node.results().first().map_or("", |v| v.name.as_str());
            let label =
                if node.name.is_empty() || node.name == first { String::new() } else { format!("[{}] ", name(&node.name)) };
            let _ = writeln!(out, "{indent}{label}{} = {}{attrs} {operands}", results.join(", "), name(&op.full_name()));
        }
        for (id, r) in &g.routers {
            let mut attrs = Attrs::new()
                .with("form", r.form.name())
                .with("rule", r.rule.name())
                .with("normalize", r.normalize.name())
                .with("tau", r.tau)
                .with("scope", r.scope.name())
                .with("granularity", r.granularity.as_str())
                .with("init", r.init.as_str())
                .with("adds_per_block", r.adds_per_block as i64);
            if r.taken != Sources::States {
                attrs = attrs.with("sources", r.taken.name());
            }
            let Sparsity { dilation, period, summaries } = r.sparsity;
            let sparsity = [("dilation", dilation, 1), ("period", period, 1), ("summaries", summaries, 1)];
            let more = sparsity.into_iter().chain([("axis", r.axis, 0), ("features", r.features, 0)]);
            for (name, value, default) in more {
                if value != default {
                    attrs = attrs.with(name, value as i64);
                }
            }
            let row = |k: usize| r.rows.iter().find(|(row, _)| *row == k).map(|(_, v)| *v);
            let mut lists: Vec<Vec<Option<ValueId>>> = vec![
                vec![Some(r.logits), r.gate],
                r.sources.iter().map(|s| Some(s.state)).collect(),
                r.sources.iter().map(|s| Some(s.value)).collect(),
                r.states.iter().copied().map(Some).collect(),
                (0..r.blocks()).map(row).collect(),
            ];
            if !r.deltas.is_empty() {
                lists.push(r.deltas.iter().copied().map(Some).collect());
            }
            let lists: Vec<String> = lists.iter().map(|l| self.values(l)).collect();
            let _ = writeln!(out, "{indent}@{id}{} {}", self.attrs(&attrs), lists.join(" "));
        }
        out
    }

    /// `(a, , b)`: the names of values, nothing for a missing one.
    fn values(&self, all: &[Option<ValueId>]) -> String {
        let text = |v: &Option<ValueId>| v.map_or(String::new(), |v| name(self.g.name(v)));
        format!("({})", all.iter().map(text).collect::<Vec<_>>().join(", "))
    }

    /// ` <name = value, …>`, or nothing.
    fn attrs(&self, attrs: &Attrs) -> String {
        let all: Vec<String> = attrs.0.iter().map(|(n, a)| self.attr(n, a)).collect();
        if all.is_empty() { String::new() } else { format!(" <{}>", all.join(", ")) }
    }

    fn attr(&self, n: &str, a: &Attr) -> String {
        let value = match a {
            Attr::Int(v) => v.to_string(),
            Attr::Float(v) => format!("{v:?}"),
            Attr::Str(v) => quoted(v),
            Attr::Ints(v) if v.is_empty() => return format!("{n} : ints = []"),
            Attr::Floats(v) if v.is_empty() => return format!("{n} : floats = []"),
            Attr::Ints(v) => format!("{v:?}"),
            Attr::Floats(v) => format!("{v:?}"),
            Attr::Tensor(t) => format!("{} {}", type_text(&tensor_type(t)), self.elements(t)),
            Attr::Opaque(_) => "…".into(),
        };
        format!("{n} = {value}")
    }

    fn elements(&self, t: &Tensor) -> String {
        // Bytes in another file are not read for this.
        if t.external().is_some() {
            return "{…}".into();
        }
        let long = !self.all && t.len() > MOST_ELEMENTS;
        let Some(values) = elements(t) else { return "{…}".into() };
        match values.first() {
            Some(first) if long && values.iter().all(|v| v == first) => format!("{{{first}, …}}"),
            _ if long => "{…}".into(),
            _ => format!("{{{}}}", values.join(", ")),
        }
    }
}

fn tensor_type(t: &Tensor) -> ValueType {
    TensorType::fixed(t.dtype(), t.dims()).into()
}

fn elements(t: &Tensor) -> Option<Vec<String>> {
    let short = |text: String| text.strip_suffix(".0").map(String::from).unwrap_or(text);
    Some(match t.dtype() {
        DType::F64 => t.to_f64().ok()?.iter().map(|v| short(format!("{v:?}"))).collect(),
        DType::F32 | DType::F16 | DType::BF16 => t.to_f32().ok()?.iter().map(|v| short(format!("{v:?}"))).collect(),
        DType::U64 => t.to_i64().ok()?.iter().map(|v| (*v as u64).to_string()).collect(),
        _ => t.to_i64().ok()?.iter().map(i64::to_string).collect(),
    })
}

/// `(a, b)`, broken into lines where it is long.
fn list(items: Vec<String>) -> String {
    let one = format!("({})", items.join(", "));
    if one.chars().count() <= LINE { one } else { format!("(\n    {}\n)", items.join(",\n    ")) }
}

fn typed(ty: &ValueType, n: &str) -> String {
    format!("{} {}", type_text(ty), name(n))
}

fn type_text(ty: &ValueType) -> String {
    let element = ty.dtype.map_or("?", DType::onnx_name);
    match &ty.shape {
        None => format!("{element}[]"),
        Some(s) if s.is_empty() => element.to_string(),
        Some(s) => format!("{element}[{}]", s.iter().map(dim).collect::<Vec<_>>().join(", ")),
    }
}

fn dim(d: &Dim) -> String {
    let text = d.to_string();
    let plain = text.chars().all(|c| c.is_alphanumeric() || "_.?:+*-".contains(c));
    if plain && Dim::parse(&text) == *d { text } else { quoted(&text) }
}

fn name(n: &str) -> String {
    if is_bare(n) { n.to_string() } else { quoted(n) }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

//! Text as graphs.

use super::{inferred, is_bare_char};
use crate::ir::{
    Attr, Attrs, DType, Dim, Form, Graph, Normalize, Op, RouterId, RouterSpec, Rule, Scope, Source, Tensor, ValueId,
    ValueType,
};
use indexmap::IndexMap;
use std::sync::Arc;

/// A text that is no graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong there: what was expected and what was found, or a name or type that does not fit.
    pub what: String,
}

type Parsed<T> = Result<T, ParseError>;

/// Reads a graph; see the module for the syntax. Types of operators' results that the text does not state are inferred.
///
/// # Errors
/// The first line that is not of the syntax, reads or redefines a name wrongly, or whose operands do not fit the operator.
pub fn parse(text: &str) -> Parsed<Graph> {
    let mut p = Parser { text, at: 0, counted: (0, 1) };
    let mut g = Graph::default();
    if p.eat('<') {
        p.imports(&mut g)?;
    }
    let name = p.name("the graph's name")?;
    Arc::make_mut(&mut g.graph_shell).name = name;
    let mut stated: IndexMap<String, (ValueType, usize)> = IndexMap::new();
    p.expect('(')?;
    p.list(')', |p| p.declaration(&mut g, true, &mut stated))?;
    p.arrow()?;
    let mut outputs = Vec::new();
    p.expect('(')?;
    p.list(')', |p| {
        let ty = p.try_type()?;
        let line = p.line();
        let name = p.name("an output's name")?;
        if let Some(ty) = ty {
            stated.insert(name.clone(), (ty, line));
        }
        outputs.push((name, line));
        Ok(())
    })?;
    if p.eat('<') {
        p.list('>', |p| p.declaration(&mut g, false, &mut stated))?;
    }
    p.expect('{')?;
    while !p.eat('}') {
        if p.eat('@') { p.router(&mut g)? } else { p.node(&mut g, &mut stated)? }
    }
    if p.peek().is_some() {
        return p.wrong("the end of the text");
    }
    for (name, line) in outputs {
        match g.find(&name) {
            Some(v) => {
                g.add_output(v, None);
                stated.shift_remove(&name);
            }
            None => return Err(ParseError { line, what: format!("the output `{name}` is not defined") }),
        }
    }
    match stated.first() {
        Some((name, (_, line))) => {
            Err(ParseError { line: *line, what: format!("`{name}` is declared but no node defines it") })
        }
        None => Ok(g),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// A place and its line, from where lines are counted on.
    counted: (usize, usize),
}

impl Parser<'_> {
    // ---- tokens -----------------------------------------------------------------------------------------------------

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            let comment = if trimmed.starts_with('#') { trimmed.find('\n').unwrap_or(trimmed.len()) } else { 0 };
            self.at += rest.len() - trimmed.len() + comment;
            if comment == 0 {
                return;
            }
        }
    }

    /// The next character that counts.
    fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest().chars().next()
    }

    fn line(&mut self) -> usize {
        self.skip();
        let (place, line) = if self.counted.0 <= self.at { self.counted } else { (0, 1) };
        self.counted = (self.at, line + self.text[place..self.at].matches('\n').count());
        self.counted.1
    }

    fn fail<T>(&mut self, what: String) -> Parsed<T> {
        Err(ParseError { line: self.line(), what })
    }

    fn wrong<T>(&mut self, expected: &str) -> Parsed<T> {
        self.skip();
        let bare = self.rest().find(|c| !is_bare_char(c)).unwrap_or(self.rest().len());
        let found = match (bare, self.rest().chars().next()) {
            (_, None) => "the end of the text".to_string(),
            (0, Some(c)) => format!("`{c}`"),
            (n, _) => format!("`{}`", &self.rest()[..n]),
        };
        self.fail(format!("expected {expected}, found {found}"))
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        if self.eat(c) { Ok(()) } else { self.wrong(&format!("`{c}`")) }
    }

    fn arrow(&mut self) -> Parsed<()> {
        self.skip();
        if !self.rest().starts_with("=>") {
            return self.wrong("`=>`");
        }
        self.at += 2;
        Ok(())
    }

    /// Items between commas up to `end`, which is taken too.
    fn list(&mut self, end: char, mut item: impl FnMut(&mut Self) -> Parsed<()>) -> Parsed<()> {
        if self.eat(end) {
            return Ok(());
        }
        loop {
            item(self)?;
            if self.eat(end) {
                return Ok(());
            }
            if !self.eat(',') {
                return self.wrong(&format!("`,` or `{end}`"));
            }
        }
    }

    /// The characters that may stand in a name without quotes; possibly none.
    fn word(&mut self) -> String {
        self.skip();
        let end = self.rest().find(|c| !is_bare_char(c)).unwrap_or(self.rest().len());
        let word = self.rest()[..end].to_string();
        self.at += end;
        word
    }

    fn name(&mut self, what: &str) -> Parsed<String> {
        if self.peek() == Some('"') {
            return self.string();
        }
        if !self.peek().is_some_and(|c| c.is_alphanumeric() || "_/".contains(c)) {
            return self.wrong(what);
        }
        Ok(self.word())
    }

    fn string(&mut self) -> Parsed<String> {
        self.expect('"')?;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, c)) => out.push(c),
                    None => break,
                },
                c => out.push(c),
            }
        }
        self.fail("expected a closing `\"`, found the end of the text".into())
    }

    /// The text of a number: digits, signs, an exponent, `inf`, `nan`.
    fn number(&mut self) -> Parsed<String> {
        self.skip();
        let end = self.rest().find(|c: char| !c.is_ascii_alphanumeric() && !"+-.".contains(c)).unwrap_or(self.rest().len());
        let text = &self.rest()[..end];
        if text.parse::<i128>().is_err() && text.parse::<f64>().is_err() {
            return self.wrong("a number");
        }
        let text = text.to_string();
        self.at += end;
        Ok(text)
    }

    fn int(&mut self) -> Parsed<i64> {
        let text = self.number()?;
        match text.parse() {
            Ok(v) => Ok(v),
            Err(_) => self.fail(format!("expected an integer of 64 bits, found `{text}`")),
        }
    }

    // ---- header -------------------------------------------------------------------------------------------------------

    fn imports(&mut self, g: &mut Graph) -> Parsed<()> {
        self.list('>', |p| {
            p.skip();
            let end = p.rest().find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(p.rest().len());
            let key = p.rest()[..end].to_string();
            if !matches!(key.as_str(), "ir_version" | "opset_import" | "metadata_props") {
                return p.wrong("`ir_version`, `opset_import` or `metadata_props`");
            }
            p.at += end;
            p.expect(':')?;
            if key == "ir_version" {
                Arc::make_mut(&mut g.shell).ir_version = p.int()?;
                return Ok(());
            }
            p.expect('[')?;
            if key == "opset_import" {
                g.opsets.clear();
            }
            p.list(']', |p| {
                let k = p.string()?;
                p.expect(':')?;
                if key == "opset_import" {
                    g.opsets.insert(k, p.int()?);
                } else {
                    g.metadata.insert(k, p.string()?);
                }
                Ok(())
            })
        })
    }

    /// An input, an initializer, or the type of a value inside the graph.
    fn declaration(&mut self, g: &mut Graph, input: bool, stated: &mut IndexMap<String, (ValueType, usize)>) -> Parsed<()> {
        let Some(ty) = self.try_type()? else { return self.wrong("a type such as `float[2, 3]`") };
        let line = self.line();
        let name = self.name("a name")?;
        if !g.is_free(&name) || (stated.contains_key(&name) && input) {
            return Err(ParseError { line, what: format!("`{name}` is declared twice") });
        }
        if self.eat('=') {
            let own = self.try_type()?;
            let tensor = self.elements(own.as_ref().unwrap_or(&ty))?;
            let v = g.add_initializer(&name, tensor, input);
            g.set_type(v, ty);
            stated.shift_remove(&name);
        } else if input {
            g.add_input(&name, ty, None);
        } else {
            stated.insert(name, (ty, line));
        }
        Ok(())
    }

    /// A type, if one begins here: an element type's name that is not itself followed by what ends a name.
    fn try_type(&mut self) -> Parsed<Option<ValueType>> {
        self.skip();
        let before = self.at;
        let dtype = if self.eat('?') {
            None
        } else {
            match DType::from_onnx_name(&self.word()) {
                Some(t) => Some(t),
                None => {
                    self.at = before;
                    return Ok(None);
                }
            }
        };
        if !self.eat('[') {
            return Ok(Some(ValueType { dtype, shape: Some(Vec::new()) }));
        }
        if self.eat(']') {
            return Ok(Some(ValueType { dtype, shape: None }));
        }
        let mut shape = Vec::new();
        self.list(']', |p| {
            shape.push(p.dim()?);
            Ok(())
        })?;
        Ok(Some(ValueType { dtype, shape: Some(shape) }))
    }

    fn dim(&mut self) -> Parsed<Dim> {
        if self.peek() == Some('"') {
            return Ok(Dim::parse(&self.string()?));
        }
        let end = self.rest().find([',', ']', '\n']).unwrap_or(self.rest().len());
        let text = self.rest()[..end].trim().to_string();
        if text.is_empty() {
            return self.wrong("a dimension");
        }
        if text.starts_with('-') && text.parse::<i64>().is_ok() {
            return self.wrong("a dimension that is not negative");
        }
        self.at += end;
        Ok(Dim::parse(&text))
    }

    fn elements(&mut self, ty: &ValueType) -> Parsed<Tensor> {
        let fixed = ty.tensor().and_then(|t| Some((t.dtype, t.known_dims()?)));
        let Some((dtype, dims)) = fixed else { return self.fail("an initializer needs a type without symbols".into()) };
        let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?)).filter(|n| *n <= 1 << 24);
        let Some(count) = count else { return self.fail(format!("an initializer of shape {dims:?} is too large")) };
        self.expect('{')?;
        let mut values: Vec<String> = Vec::new();
        let mut elided = false;
        self.list('}', |p| {
            elided = p.eat('…');
            if !elided {
                values.push(p.number()?);
            } else if p.peek() != Some('}') {
                return p.wrong("`}`");
            }
            Ok(())
        })?;
        if elided && values.is_empty() {
            values.extend((0..count).map(|i| if dtype == DType::Bool { i % 2 } else { i }.to_string()));
        } else if let (true, Some(last)) = (elided, values.last().cloned()) {
            values.resize(count.max(values.len()), last);
        }
        if values.len() != count {
            return self.fail(format!("expected {count} elements, found {}", values.len()));
        }
        match tensor(dtype, &dims, &values) {
            Some(t) => Ok(t),
            None => self.fail(format!("elements of type {} cannot be read from this text", dtype.onnx_name())),
        }
    }

    // ---- nodes --------------------------------------------------------------------------------------------------------

    fn node(&mut self, g: &mut Graph, stated: &mut IndexMap<String, (ValueType, usize)>) -> Parsed<()> {
        let line = self.line();
        let at = |what: String| ParseError { line, what };
        let mut label = None;
        if self.eat('[') {
            label = Some(self.name("a node's name")?);
            self.expect(']')?;
        }
        let mut results = Vec::new();
        self.list('=', |p| {
            results.push(p.name("the name of a result, or `}`")?);
            Ok(())
        })?;
        let full = self.name("an operator")?;
        let (domain, operator) = full.rsplit_once('.').unwrap_or(("", &full));
        let mut attrs = Attrs::new();
        if self.eat('<') {
            self.list('>', |p| p.attr(&mut attrs))?;
        }
        let mut operands = Vec::new();
        self.expect('(')?;
        self.list(')', |p| {
            operands.push(p.operand(g)?);
            Ok(())
        })?;
        let name = label.or_else(|| results.first().cloned()).unwrap_or_default();
        let id = g.add_op(&name, Op::in_domain(domain, operator, attrs), &operands);
        let missing = results.iter().any(|r| !r.is_empty() && !stated.contains_key(r));
        let types = match inferred(g, id) {
            Ok(types) => types.unwrap_or_default(),
            Err(e) if missing => return Err(at(format!("{full}: {e}"))),
            Err(_) => Vec::new(),
        };
        for (slot, name) in results.into_iter().enumerate() {
            if !name.is_empty() && !g.is_free(&name) {
                return Err(at(format!("`{name}` is defined twice")));
            }
            let rule = types.get(slot).cloned().map(ValueType::from).unwrap_or_default();
            let ty = stated.swap_remove(&name).map_or(rule, |(ty, _)| ty);
            g.push_result(id, &name, ty);
        }
        Ok(())
    }

    /// A router, after its `@`.
    fn router(&mut self, g: &mut Graph) -> Parsed<()> {
        let id = RouterId(self.int()?.max(0) as usize);
        let mut attrs = Attrs::new();
        self.expect('<')?;
        self.list('>', |p| p.attr(&mut attrs))?;
        let mut lists: [Vec<Option<ValueId>>; 5] = Default::default();
        for list in &mut lists {
            self.expect('(')?;
            self.list(')', |p| {
                list.push(p.operand(g)?);
                Ok(())
            })?;
        }
        let [weights, states, values, own, rows] = lists;
        let word = |name: &str| attrs.str(name, "").to_string();
        let words = (
            Form::of_name(&word("form")),
            Rule::of_name(&word("rule")),
            Normalize::of_name(&word("normalize")),
            Scope::of_name(&word("scope")),
        );
        let (Some(form), Some(rule), Some(normalize), Some(scope)) = words else {
            return self.fail("a router has a form, a rule, a normalisation and a scope".into());
        };
        let Some(logits) = weights.first().copied().flatten() else {
            return self.fail("a router has logits".into());
        };
        let sources = states.into_iter().flatten().zip(values.into_iter().flatten());
        let spec = RouterSpec {
            form,
            rule,
            normalize,
            scope,
            tau: attrs.float("tau", 1.0),
            granularity: word("granularity"),
            init: word("init"),
            adds_per_block: attrs.int("adds_per_block", 1).max(0) as usize,
            logits,
            gate: weights.get(1).copied().flatten(),
            sources: sources.map(|(state, value)| Source { state, value }).collect(),
            states: own.into_iter().flatten().collect(),
            rows: rows.into_iter().enumerate().filter_map(|(row, v)| Some((row, v?))).collect(),
        };
        g.routers.insert(id, spec);
        Ok(())
    }

    /// An operand; nothing, or `""`, where one is missing.
    fn operand(&mut self, g: &Graph) -> Parsed<Option<ValueId>> {
        if matches!(self.peek(), Some(',' | ')')) {
            return Ok(None);
        }
        let name = self.name("an operand")?;
        if name.is_empty() {
            return Ok(None);
        }
        match g.find(&name) {
            Some(v) => Ok(Some(v)),
            None => self.fail(format!("`{name}` is not defined before it is read")),
        }
    }

    fn attr(&mut self, attrs: &mut Attrs) -> Parsed<()> {
        self.skip();
        let end = self.rest().find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest().len());
        let name = self.rest()[..end].to_string();
        if name.is_empty() {
            return self.wrong("an attribute's name");
        }
        self.at += end;
        let kind = if self.eat(':') { Some(self.word()) } else { None };
        self.expect('=')?;
        let value = match self.peek() {
            Some('"') => Attr::Str(self.string()?),
            Some('[') => self.numbers(kind.as_deref())?,
            Some('…') => return self.fail(format!("the attribute `{name}` is elided; this text cannot be read back")),
            _ => match self.try_type()? {
                Some(ty) => Attr::Tensor(self.elements(&ty)?),
                None => {
                    let text = self.number()?;
                    match text.parse() {
                        Ok(v) if kind.as_deref() != Some("float") => Attr::Int(v),
                        _ => Attr::Float(text.parse().unwrap_or(f32::NAN)),
                    }
                }
            },
        };
        attrs.0.insert(name, value);
        Ok(())
    }

    fn numbers(&mut self, kind: Option<&str>) -> Parsed<Attr> {
        self.expect('[')?;
        let mut all = Vec::new();
        self.list(']', |p| {
            all.push(p.number()?);
            Ok(())
        })?;
        let ints: Option<Vec<i64>> = all.iter().map(|t| t.parse().ok()).collect();
        Ok(match ints {
            Some(ints) if kind != Some("floats") => Attr::Ints(ints),
            _ => Attr::Floats(all.iter().map(|t| t.parse().unwrap_or(f32::NAN)).collect()),
        })
    }
}

fn tensor(dtype: DType, dims: &[i64], values: &[String]) -> Option<Tensor> {
    fn read<T: std::str::FromStr, const N: usize>(values: &[String], bytes: impl Fn(T) -> [u8; N]) -> Option<Vec<u8>> {
        let all: Option<Vec<[u8; N]>> = values.iter().map(|v| v.parse().ok().map(&bytes)).collect();
        Some(all?.concat())
    }
    let bytes = match dtype {
        DType::F32 => read(values, f32::to_le_bytes)?,
        DType::F64 => read(values, f64::to_le_bytes)?,
        DType::F16 | DType::BF16 => {
            let all: Option<Vec<f64>> = values.iter().map(|v| v.parse().ok()).collect();
            return Some(Tensor::floats(dtype, dims, &all?));
        }
        DType::I64 => read(values, i64::to_le_bytes)?,
        DType::U64 => read(values, u64::to_le_bytes)?,
        DType::I32 => read(values, i32::to_le_bytes)?,
        DType::U32 => read(values, u32::to_le_bytes)?,
        DType::I16 => read(values, i16::to_le_bytes)?,
        DType::U16 => read(values, u16::to_le_bytes)?,
        DType::I8 => read(values, i8::to_le_bytes)?,
        DType::U8 => read(values, u8::to_le_bytes)?,
        DType::Bool => read(values, |v: u8| [(v != 0) as u8])?,
        _ => return None,
    };
    Some(Tensor::from_bytes(dtype, dims, bytes))
}

//! Text as graphs.

use super::{inferred, is_bare_char};
use crate::ir::{
    Attr, Attrs, DType, Dim, Form, Graph, Normalize, Op, RouterId, RouterSpec, Rule, Scope, Source, Sources, Sparsity,
    Tensor, ValueId, ValueType,
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
    let mut stated = Stated::new();
    p.expect('(')?;
    p.list(')', |p| p.declaration(&mut g, true, &mut stated))?;
    p.skip();
    if !p.rest().starts_with("=>") {
        return p.wrong("`=>`");
    }
    p.at += 2;
    p.expect('(')?;
    let outputs = p.list(')', |p| {
        let ty = p.try_type()?;
        let line = p.line();
        let name = p.name("an output's name")?;
        stated.extend(ty.map(|ty| (name.clone(), (ty, line))));
        Ok((name, line))
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
        let v = g.find(&name).ok_or_else(|| ParseError { line, what: format!("the output `{name}` is not defined") })?;
        g.add_output(v, None);
        stated.shift_remove(&name);
    }
    match stated.pop() {
        Some((name, (_, line))) => Err(ParseError { line, what: format!("`{name}` is declared but no node defines it") }),
        None => Ok(g),
    }
}

/// Types that declarations state of values that no node has defined yet, with the declarations' lines.
type Stated = IndexMap<String, (ValueType, usize)>;

struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// A place and its line, from where lines are counted on.
    counted: (usize, usize),
}

impl<'t> Parser<'t> {
    // ---- tokens -----------------------------------------------------------------------------------------------------

    fn rest(&self) -> &'t str {
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
        let found = match (self.take(is_bare_char), self.rest().chars().next()) {
            ("", None) => "the end of the text".to_string(),
            ("", Some(c)) => format!("`{c}`"),
            (word, _) => format!("`{word}`"),
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

    /// Items between commas up to `end`, which is taken too.
    fn list<T>(&mut self, end: char, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        if self.eat(end) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(end) {
                return Ok(items);
            }
            if !self.eat(',') {
                return self.wrong(&format!("`,` or `{end}`"));
            }
        }
    }

    /// The characters from here on for which `which` holds; possibly none.
    fn take(&mut self, which: impl Fn(char) -> bool) -> &'t str {
        self.skip();
        let rest = self.rest();
        let word = &rest[..rest.find(|c| !which(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    /// An attribute's name or a key of the header; possibly nothing.
    fn key(&mut self) -> &'t str {
        self.take(|c| c.is_alphanumeric() || c == '_')
    }

    fn name(&mut self, what: &str) -> Parsed<String> {
        if self.peek() == Some('"') {
            return self.string();
        }
        if !self.peek().is_some_and(|c| c.is_alphanumeric() || "_/".contains(c)) {
            return self.wrong(what);
        }
        Ok(self.take(is_bare_char).to_string())
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
    fn number(&mut self) -> Parsed<&'t str> {
        let text = self.take(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        if text.parse::<i128>().is_err() && text.parse::<f64>().is_err() {
            self.at -= text.len();
            return self.wrong("a number");
        }
        Ok(text)
    }

    fn int(&mut self) -> Parsed<i64> {
        let text = self.number()?;
        text.parse().or_else(|_| self.fail(format!("expected an integer of 64 bits, found `{text}`")))
    }

    // ---- header -------------------------------------------------------------------------------------------------------

    fn imports(&mut self, g: &mut Graph) -> Parsed<()> {
        self.list('>', |p| {
            let key = p.key();
            if !matches!(key, "ir_version" | "opset_import" | "metadata_props") {
                p.at -= key.len();
                return p.wrong("`ir_version`, `opset_import` or `metadata_props`");
            }
            p.expect(':')?;
            match key {
                "ir_version" => Arc::make_mut(&mut g.shell).ir_version = p.int()?,
                "opset_import" => g.opsets = p.pairs(Self::int)?,
                _ => g.metadata = p.pairs(Self::string)?,
            }
            Ok(())
        })?;
        Ok(())
    }

    /// `["key" : value, …]`
    fn pairs<T>(&mut self, value: impl Fn(&mut Self) -> Parsed<T>) -> Parsed<IndexMap<String, T>> {
        self.expect('[')?;
        let pairs = self.list(']', |p| {
            let key = p.string()?;
            p.expect(':')?;
            Ok((key, value(p)?))
        })?;
        Ok(pairs.into_iter().collect())
    }

    /// An input, an initializer, or the type of a value inside the graph.
    fn declaration(&mut self, g: &mut Graph, input: bool, stated: &mut Stated) -> Parsed<()> {
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
        let mut dtype = None;
        if !self.eat('?') {
            let word = self.take(is_bare_char);
            dtype = DType::from_onnx_name(word);
            if dtype.is_none() {
                self.at -= word.len();
                return Ok(None);
            }
        }
        let shape = match self.eat('[') {
            false => Some(Vec::new()),
            true if self.eat(']') => None,
            true => Some(self.list(']', Self::dim)?),
        };
        Ok(Some(ValueType { dtype, shape }))
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
        let written = self.list('}', |p| match p.eat('…') {
            false => p.number().map(|n| Some(n.to_string())),
            true if p.peek() == Some('}') => Ok(None),
            true => p.wrong("`}`"),
        })?;
        let elided = written.last() == Some(&None);
        let mut values: Vec<String> = written.into_iter().flatten().collect();
        if elided && values.is_empty() {
            values.extend((0..count).map(|i| if dtype == DType::Bool { i % 2 } else { i }.to_string()));
        } else if let (true, Some(last)) = (elided, values.last().cloned()) {
            values.resize(count.max(values.len()), last);
        }
        if values.len() != count {
            return self.fail(format!("expected {count} elements, found {}", values.len()));
        }
        let unread = || format!("elements of type {} cannot be read from this text", dtype.onnx_name());
        tensor(dtype, &dims, &values).map_or_else(|| self.fail(unread()), Ok)
    }

    // ---- nodes --------------------------------------------------------------------------------------------------------

    fn node(&mut self, g: &mut Graph, stated: &mut Stated) -> Parsed<()> {
        let line = self.line();
        let at = |what: String| ParseError { line, what };
        let mut label = None;
        if self.eat('[') {
            label = Some(self.name("a node's name")?);
            self.expect(']')?;
        }
        let results = self.list('=', |p| p.name("the name of a result, or `}`"))?;
        let full = self.name("an operator")?;
        let (domain, operator) = full.rsplit_once('.').unwrap_or(("", &full));
        let attrs = if self.eat('<') { self.attrs()? } else { Attrs::new() };
        let operands = self.operands(g)?;
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
        self.expect('<')?;
        let attrs = self.attrs()?;
        let [weights, states, values] = [self.operands(g)?, self.operands(g)?, self.operands(g)?];
        let [own, rows] = [self.operands(g)?, self.operands(g)?];
        let deltas = if self.peek() == Some('(') { self.operands(g)? } else { Vec::new() };
        let word = |name: &str| attrs.str(name).unwrap_or_default().to_string();
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
        let every = |name: &str| attrs.int(name).unwrap_or(1).max(1) as usize;
        let spec = RouterSpec {
            form,
            rule,
            normalize,
            scope,
            tau: attrs.float("tau").unwrap_or(1.0),
            taken: Sources::of_name(&word("sources")).unwrap_or(Sources::States),
            sparsity: Sparsity { dilation: every("dilation"), period: every("period"), summaries: every("summaries") },
            axis: attrs.int("axis").unwrap_or(0).max(0) as usize,
            features: attrs.int("features").unwrap_or(0).max(0) as usize,
            granularity: word("granularity"),
            init: word("init"),
            adds_per_block: attrs.int("adds_per_block").unwrap_or(1).max(0) as usize,
            logits,
            gate: weights.get(1).copied().flatten(),
            sources: sources.map(|(state, value)| Source { state, value }).collect(),
            states: own.into_iter().flatten().collect(),
            deltas: deltas.into_iter().flatten().collect(),
            rows: rows.into_iter().enumerate().filter_map(|(row, v)| Some((row, v?))).collect(),
        };
        g.routers.insert(id, spec);
        Ok(())
    }

    /// Operands in brackets. A missing one is nothing, or `""`.
    fn operands(&mut self, g: &Graph) -> Parsed<Vec<Option<ValueId>>> {
        self.expect('(')?;
        self.list(')', |p| {
            if matches!(p.peek(), Some(',' | ')')) {
                return Ok(None);
            }
            let name = p.name("an operand")?;
            match g.find(&name) {
                None if !name.is_empty() => p.fail(format!("`{name}` is not defined before it is read")),
                found => Ok(found),
            }
        })
    }

    /// Attributes up to `>`.
    fn attrs(&mut self) -> Parsed<Attrs> {
        Ok(Attrs(self.list('>', Self::attr)?.into_iter().collect()))
    }

    fn attr(&mut self) -> Parsed<(String, Attr)> {
        let name = self.key().to_string();
        if name.is_empty() {
            return self.wrong("an attribute's name");
        }
        let kind = if self.eat(':') { self.take(is_bare_char) } else { "" };
        self.expect('=')?;
        let value = match self.peek() {
            Some('"') => Attr::Str(self.string()?),
            Some('[') => self.numbers(kind)?,
            Some('…') => return self.fail(format!("the attribute `{name}` is elided; this text cannot be read back")),
            _ => match self.try_type()? {
                Some(ty) => Attr::Tensor(self.elements(&ty)?),
                None => {
                    let text = self.number()?;
                    match text.parse() {
                        Ok(v) if kind != "float" => Attr::Int(v),
                        _ => Attr::Float(text.parse().unwrap_or(f32::NAN)),
                    }
                }
            },
        };
        Ok((name, value))
    }

    fn numbers(&mut self, kind: &str) -> Parsed<Attr> {
        self.expect('[')?;
        let all = self.list(']', Self::number)?;
        let ints: Option<Vec<i64>> = all.iter().map(|t| t.parse().ok()).collect();
        Ok(match ints {
            Some(ints) if kind != "floats" => Attr::Ints(ints),
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

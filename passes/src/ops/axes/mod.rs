//! Which axes of an operator's results are which axes of its operands, and what becomes of the others: stated here once, and read
//! by whoever follows an axis (the samples of a batch, the classes of a classifier, the channels of an image).
//!
//! ```text
//!   Conv       n c ~h.., o c k.., o -> n o ~h..
//!   Softmax    a0 a1 =a2 -> a0 a1 =a2                    with axis 2
//!   MatMul     ^b.. m k, ^b.. k n -> b.. m n
//!   name       an axis. Part i of a result along it is computed from the parts i of the operands that have it, and from all of
//!              those that have not, in the same way for every i: it is free. An axis that no result has is contracted.
//!   ~name      part i is computed from a window around i
//!   =name      part i is computed from all parts, or in another way for every i
//!   _          an axis that is none of the others'
//!   name..     as many axes as there are beside the others; _name.. as many as name.., each none of the others'
//!   ^ …        the operand broadcasts: it is aligned from the last axis, and its axes may have extent 1
//! ```

mod statement;

use super::*;

/// A name of an axis in one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// What an operator does along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// Parts are computed one from another.
    Free,
    /// Parts are computed from windows.
    Window,
    /// Every part is computed from all, or in a way of its own.
    Whole,
    /// No result has it.
    Contracted,
    /// No operand has it.
    Made,
}

/// The axes of one application.
#[derive(Clone, Debug, Default)]
pub struct Axes {
    operands: Vec<Vec<Label>>,
    broadcasts: Vec<bool>,
    results: Vec<Vec<Label>>,
    along: Vec<Along>,
}

impl Axes {
    /// The axes of operand `i`; none if it is missing.
    pub fn operand(&self, i: usize) -> &[Label] {
        self.operands.get(i).map_or(&[], Vec::as_slice)
    }

    /// The axes of a result. Results beyond those that are stated are as the last one.
    pub fn result(&self, slot: usize) -> &[Label] {
        self.results.get(slot).or(self.results.last()).map_or(&[], Vec::as_slice)
    }

    /// What is done along an axis.
    pub fn along(&self, label: Label) -> Along {
        self.along[label.0]
    }

    /// Every axis there is.
    pub fn labels(&self) -> impl Iterator<Item = Label> {
        (0..self.along.len()).map(Label)
    }

    /// May the operand have extent 1 where others have more?
    pub fn broadcasts(&self, i: usize) -> bool {
        self.broadcasts.get(i) == Some(&true)
    }

    /// Where operand `i` has an axis.
    pub fn in_operand(&self, i: usize, label: Label) -> Option<usize> {
        self.operand(i).iter().position(|l| *l == label)
    }

    /// Where a result has an axis.
    pub fn in_result(&self, slot: usize, label: Label) -> Option<usize> {
        self.result(slot).iter().position(|l| *l == label)
    }

    /// Where an axis of operand `i` is in the first result.
    pub fn forward(&self, i: usize, axis: usize) -> Option<usize> {
        self.in_result(0, *self.operand(i).get(axis)?)
    }

    /// Where an axis of the first result is in operand `i`.
    pub fn backward(&self, axis: usize, i: usize) -> Option<usize> {
        self.in_operand(i, *self.result(0).get(axis)?)
    }

    /// Reads a statement, for operands of these ranks.
    fn read(text: &str, ranks: &[Option<usize>]) -> Option<Axes> {
        let (operands, results) = text.split_once("->")?;
        let operands: Vec<(Vec<&str>, bool)> = operands
            .split(',')
            .map(|o| o.trim())
            .map(|o| (o.trim_start_matches('^').split_whitespace().collect(), o.starts_with('^')))
            .collect();
        // How many axes each `name..` stands for.
        let mut widths: Vec<(&str, usize)> = Vec::new();
        for ((tokens, broadcasts), rank) in operands.iter().zip(ranks) {
            let (Some(rank), Some(token)) = (rank, tokens.iter().find(|t| t.ends_with(".."))) else { continue };
            let width = match rank.checked_sub(tokens.len() - 1) {
                Some(width) => width,
                None if *broadcasts => 0,
                None => return None,
            };
            match widths.iter_mut().find(|(name, _)| *name == plain(token)) {
                _ if plain(token) == "_" => {}
                None => widths.push((plain(token), width)),
                Some((_, w)) if *broadcasts => *w = width.max(*w),
                Some((_, w)) if *w == width => {}
                Some(_) => return None,
            }
        }
        let mut read = Reading { axes: Axes::default(), names: Vec::new(), widths };
        for (i, rank) in ranks.iter().enumerate() {
            let (tokens, broadcasts) = operands.get(i).map_or((&[][..], false), |(t, b)| (t.as_slice(), *b));
            let mut labels = Vec::new();
            if let Some(rank) = *rank {
                let tokens = if operands.get(i).is_none() { &["_.."][..] } else { tokens };
                let rest = (rank + 1).saturating_sub(tokens.len());
                tokens.iter().try_for_each(|t| read.token(t, rest, &mut labels))?;
                match labels.len().checked_sub(rank) {
                    Some(surplus) if broadcasts || surplus == 0 => drop(labels.drain(..surplus)),
                    _ => return None,
                }
            }
            read.axes.operands.push(labels);
            read.axes.broadcasts.push(broadcasts);
        }
        for tokens in results.split(',') {
            let mut labels = Vec::new();
            tokens.split_whitespace().try_for_each(|t| read.token(t, 0, &mut labels))?;
            read.axes.results.push(labels);
        }
        let mut axes = read.axes;
        for label in (0..axes.along.len()).map(Label) {
            let has = |all: &[Vec<Label>]| all.iter().any(|labels| labels.contains(&label));
            match (has(&axes.operands), has(&axes.results)) {
                (true, false) => axes.along[label.0] = Along::Contracted,
                (false, true) => axes.along[label.0] = Along::Made,
                _ => {}
            }
        }
        Some(axes)
    }
}

/// A token without what is said about it.
fn plain(token: &str) -> &str {
    token.trim_start_matches(['~', '=']).trim_end_matches("..")
}

/// A statement while it is read.
struct Reading<'t> {
    axes: Axes,
    names: Vec<(&'t str, usize, Label)>,
    widths: Vec<(&'t str, usize)>,
}

impl<'t> Reading<'t> {
    /// The labels a token stands for; `rest`: how many `_..` does.
    fn token(&mut self, token: &'t str, rest: usize, labels: &mut Vec<Label>) -> Option<()> {
        let along = match token.as_bytes().first() {
            Some(b'~') => Along::Window,
            Some(b'=') => Along::Whole,
            _ => Along::Free,
        };
        let name = plain(token);
        let own = name.strip_prefix('_');
        let width = match own {
            _ if !token.ends_with("..") => 1,
            Some("") => rest,
            // No operand has them: none.
            _ => self.widths.iter().find(|(n, _)| *n == own.unwrap_or(name)).map_or(0, |(_, w)| *w),
        };
        for i in 0..width {
            let known = self.names.iter().find(|(n, at, _)| own.is_none() && *n == name && *at == i).map(|n| n.2);
            let label = known.unwrap_or_else(|| {
                self.axes.along.push(if own.is_some() { Along::Whole } else { Along::Free });
                let label = Label(self.axes.along.len() - 1);
                self.names.push((name, i, label));
                label
            });
            if along != Along::Free {
                self.axes.along[label.0] = along;
            }
            labels.push(label);
        }
        Some(())
    }
}

/// The axes of a node.
pub fn axes_of(g: &Graph, node: NodeId) -> Option<Axes> {
    let operands = g.operands(node);
    let types: Vec<Option<TensorType>> = operands.iter().map(|v| g.tensor_type((*v)?)).collect();
    let array = |i: usize| g.array(operands.get(i).copied().flatten()?).map(Cow::into_owned);
    let present = |i: usize| operands.get(i).is_some_and(Option::is_some);
    let cx = Infer { op: g.op(node)?, types: &types, array: &array, present: &present };
    let result = g.results(node).next().and_then(|v| g.value(v).ty.shape.as_deref());
    axes(&cx, g.opsets.get("").copied().unwrap_or(18), result)
}

/// The axes of an operator's application; `None` where nothing is stated, or types that it takes are unknown. `opset`: of `ai.onnx`;
/// `result`: the shape of the first result, as far as it is known.
pub fn axes(cx: &Infer, opset: i64, result: Option<&[Dim]>) -> Option<Axes> {
    let ranks: Vec<Option<usize>> = (0..cx.types.len()).map(|i| Some(cx.types[i].as_ref()?.rank())).collect();
    // A present operand of unknown rank.
    if (0..ranks.len()).any(|i| ranks[i].is_none() && (cx.present)(i)) {
        return None;
    }
    let domain = cx.op.domain.as_str();
    // Elsewhere names stand for other layouts.
    let known = matches!(domain, "" | "ai.onnx" | "com.microsoft" | "ancre");
    Axes::read(&statement::of(cx, opset, &ranks, result).filter(|_| known)?, &ranks)
}

//! The axes of an operator's results as axes of its operands. Passes that follow an axis (the samples of a batch, the classes of a
//! classifier, the channels of an image) read these statements.
//!
//! ```text
//!   Conv       n c ~h.., o c k.., o -> n o ~h..
//!   Softmax    a0 a1 =a2 -> a0 a1 =a2                    with axis 2
//!   MatMul     ^b.. m k, ^b.. k n -> b.. m n
//!   name       an axis. If it is free, part i of a result is computed from the parts i of the operands that have the axis and
//!              from all of the other operands, in the same way for every i. An axis that no result has is contracted.
//!   ~name      part i is computed from a window around i
//!   =name      part i is computed from all parts, or in its own way for every i
//!   _          an axis that is none of the other axes
//!   name..     the axes of the operand that no other name covers; _name.. as many new axes as name..
//!   ^ …        the operand broadcasts: it is aligned from the last axis, and its axes may have extent 1
//! ```

mod statement;

use super::*;

/// An axis of one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// What an operator does along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// Part i is computed from part i.
    Free,
    /// Part i is computed from a window around i.
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

    /// The axes of a result. Results beyond the stated ones have the axes of the last.
    pub fn result(&self, slot: usize) -> &[Label] {
        self.results.get(slot).or(self.results.last()).map_or(&[], Vec::as_slice)
    }

    /// What the operator does along an axis.
    pub fn along(&self, label: Label) -> Along {
        self.along[label.0]
    }

    /// All axes.
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
        // The number of axes for each `name..`.
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

/// The name in a token.
fn plain(token: &str) -> &str {
    token.trim_start_matches(['~', '=']).trim_end_matches("..")
}

/// The state of reading a statement.
struct Reading<'t> {
    axes: Axes,
    names: Vec<(&'t str, usize, Label)>,
    widths: Vec<(&'t str, usize)>,
}

impl<'t> Reading<'t> {
    /// Adds a token's labels; `rest` is the number of axes for `_..`.
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
            // A name that no operand has stands for no axes.
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
    let result = g.results(node).next().and_then(|v| g.value(v).ty.shape.as_deref());
    let opset = g.opsets.get("").copied().unwrap_or(18);
    about(g.op(node)?, g.operands(node), g, |cx| axes(cx, opset, result))
}

/// The axes of an operator's application; `None` if no statement is known, or a needed type is unknown. `opset` is that of
/// `ai.onnx`, `result` the shape of the first result, if known.
pub fn axes(cx: &Infer, opset: i64, result: Option<&[Dim]>) -> Option<Axes> {
    let ranks: Vec<Option<usize>> = (0..cx.types.len()).map(|i| Some(cx.types[i].as_ref()?.rank())).collect();
    // An operand that is given has to have a known rank.
    if (0..ranks.len()).any(|i| ranks[i].is_none() && (cx.present)(i)) {
        return None;
    }
    let domain = cx.op.domain.as_str();
    // In other domains a name may stand for another layout.
    let known = matches!(domain, "" | "ai.onnx" | "com.microsoft" | "ancre");
    Axes::read(&statement::of(cx, opset, &ranks, result).filter(|_| known)?, &ranks)
}

//! The inputs that two models are compared on: random ones, and others that show what random ones may not. Zeros and small
//! magnitudes show the epsilon of a normalisation, large magnitudes a clip that never cut, ties a strict comparison, another
//! extent a number written into the graph. Ids run through the rows of the tables they index.

use crate::engine::Tensors;
use crate::engine::random_inputs::{self, ExtentKind, Sizes};
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{Graph, ValueId};
use ancre_passes::random::Random;
use indexmap::IndexMap;
use serde::Serialize;

/// What is special about an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Normal,
    /// Standard normal, with other extents of what is dynamic, and no element masked.
    Extents,
    /// Ten times as large.
    Large,
    /// The first input with its signs flipped.
    Negated,
    /// -1, 0 or 1: many elements are equal.
    Ties,
    /// A thousandth.
    Small,
    Zeros,
    Given,
}

impl Style {
    /// The order in which trials take them.
    const CYCLE: [Style; 8] = [
        Style::Normal,
        Style::Extents,
        Style::Large,
        Style::Small,
        Style::Ties,
        Style::Negated,
        Style::Zeros,
        Style::Normal,
    ];

    /// Its name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Style::Normal => "normal",
            Style::Extents => "other extents",
            Style::Large => "large",
            Style::Negated => "signs flipped",
            Style::Ties => "ties",
            Style::Small => "small",
            Style::Zeros => "zeros",
            Style::Given => "given",
        }
    }

    /// A float element of this style from a normal one.
    fn element(self, v: f64) -> f64 {
        match self {
            Style::Normal | Style::Extents | Style::Given => v,
            Style::Large => 10.0 * v,
            Style::Small => 1e-3 * v,
            Style::Negated => -v,
            Style::Zeros => 0.0,
            // A third each.
            Style::Ties => (v > 0.43) as u8 as f64 - (v < -0.43) as u8 as f64,
        }
    }
}

/// One input of the models.
#[derive(Clone, Debug)]
pub struct Trial {
    pub(crate) style: Style,
    /// Extents of the symbols.
    pub(crate) sizes: Sizes,
    pub inputs: Tensors,
}

impl Trial {
    /// `large, batch=2`
    pub fn label(&self) -> String {
        let sizes: Vec<String> = self.sizes.iter().map(|(name, n)| format!("{name}={n}")).collect();
        [&[self.style.name().to_string()][..], &sizes].concat().join(", ")
    }
}

/// How much of the tables that an input indexes was read.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Coverage {
    pub(crate) input: String,
    /// Rows of the largest table it indexes.
    pub(crate) rows: usize,
    /// Rows that differ between the models; they are read first.
    pub(crate) differing: usize,
    pub(crate) read: usize,
}

/// The rows an input is to read, in this order, over and over.
struct Rows {
    order: Vec<i64>,
    differing: usize,
    next: usize,
    read: usize,
}

/// Makes the trials.
pub(super) struct Planner<'m> {
    a: &'m Graph,
    given: &'m Tensors,
    seed: u64,
    rows: IndexMap<String, Rows>,
}

impl<'m> Planner<'m> {
    /// For inputs that both models take; `given` are fed as they are.
    pub(super) fn new(a: &'m Graph, b: &Graph, given: &'m Tensors, seed: u64) -> Planner<'m> {
        let mut rows = IndexMap::new();
        for v in a.required_inputs() {
            let name = a.name(v);
            if given.contains_key(name) || a.is_float(v) {
                continue;
            }
            let of_b = b.find(name).map(|w| random_inputs::indexed_tables(b, w)).unwrap_or_default();
            if let Some(r) = rows_to_read(a, &random_inputs::indexed_tables(a, v), b, &of_b, seed) {
                rows.insert(name.to_string(), r);
            }
        }
        Planner { a, given, seed, rows }
    }

    /// Are all inputs the user's, so that trials do not vary?
    pub(super) fn all_given(&self) -> bool {
        self.a.required_inputs().all(|v| self.given.contains_key(self.a.name(v)))
    }

    /// The first trial; it shows with which sizes the models run. Fails when an input cannot be made up.
    pub(super) fn first(&mut self, sizes: &Sizes) -> Result<Trial, String> {
        let style = if self.all_given() { Style::Given } else { Style::Normal };
        self.trial(style, sizes, self.seed)
    }

    /// Inputs of other sizes; they show whether the models run with these. Fails when an input cannot be made up.
    pub(super) fn probe(&mut self, sizes: &Sizes) -> Result<Tensors, String> {
        self.fill(|planner, v, _| random_inputs::random_input(planner.a, v, sizes, planner.seed))
    }

    /// Other sizes to try, the most different ones first; `fixed` are the user's.
    pub(super) fn other_sizes(&self, base: &Sizes, fixed: &Sizes) -> Vec<Sizes> {
        let kinds = random_inputs::extent_kinds(self.a);
        let is_free = |name: &str, kind: ExtentKind| kinds.get(name) == Some(&kind) && !fixed.contains_key(name);
        let with = |batch: i64, sequence: i64| -> Sizes {
            let pick = |(name, n): (&String, &i64)| {
                let n = match () {
                    () if is_free(name, ExtentKind::Batch) => batch,
                    () if is_free(name, ExtentKind::Sequence) => *n + sequence,
                    () => *n,
                };
                (name.clone(), n)
            };
            base.iter().map(pick).collect()
        };
        let covering = self.covering_batch(base);
        let mut all = vec![with(covering.unwrap_or(3), 3), with(covering.unwrap_or(3), 0), with(3, 0), with(1, 0)];
        all.dedup();
        all.retain(|s| s != base);
        all
    }

    /// The batch with which one trial reads every row of every table, if it is not too large.
    fn covering_batch(&self, base: &Sizes) -> Option<i64> {
        const MOST: i64 = 64;
        let kinds = random_inputs::extent_kinds(self.a);
        let batch = *base.iter().find(|(name, _)| kinds.get(*name) == Some(&ExtentKind::Batch))?.1;
        let needed = |(name, rows): (&String, &Rows)| -> Option<i64> {
            let ty = self.a.tensor_type(self.a.find(name)?)?;
            let count = ty.shape.iter().try_fold(1i64, |n, d| n.checked_mul(d.eval(&|s| base.get(s).copied())?))?;
            Some((rows.order.len() as u64).div_ceil((count / batch).max(1) as u64) as i64)
        };
        let most = self.rows.iter().filter_map(needed).filter(|n| *n <= MOST).max()?;
        Some(most.max(3))
    }

    /// All trials; `other` are sizes that the models run with too. Fails when an input cannot be made up.
    pub(super) fn trials(&mut self, first: Trial, other: Option<&Sizes>, count: usize) -> Result<Vec<Trial>, String> {
        let base = first.sizes.clone();
        let mut all = vec![first];
        if all[0].style == Style::Given {
            return Ok(all);
        }
        for i in 1..count {
            let style = Style::CYCLE[i % Style::CYCLE.len()];
            let sizes = if style == Style::Extents { other.unwrap_or(&base) } else { &base };
            if style == Style::Extents {
                // The rows read so far may have been masked.
                self.rows.values_mut().for_each(|r| r.next = 0);
            }
            // This style flips the signs of the first input.
            let seed = if style == Style::Negated { self.seed } else { self.seed.wrapping_add(i as u64) };
            all.push(self.trial(style, sizes, seed)?);
        }
        Ok(all)
    }

    fn trial(&mut self, style: Style, sizes: &Sizes, seed: u64) -> Result<Trial, String> {
        let inputs = self.fill(|planner, v, name| planner.tensor(v, name, style, sizes, seed))?;
        Ok(Trial { style, sizes: sizes.clone(), inputs })
    }

    /// A tensor for each input: the user's, or what `make` makes.
    fn fill(&mut self, make: impl Fn(&mut Self, ValueId, &str) -> Result<NpTensor, String>) -> Result<Tensors, String> {
        let mut inputs = Tensors::new();
        for v in self.a.required_inputs() {
            let name = self.a.name(v);
            let t = match self.given.get(name) {
                Some(t) => t.clone(),
                None => make(self, v, name)?,
            };
            inputs.insert(name.to_string(), t);
        }
        Ok(inputs)
    }

    fn tensor(&mut self, v: ValueId, name: &str, style: Style, sizes: &Sizes, seed: u64) -> Result<NpTensor, String> {
        let t = random_inputs::random_input(self.a, v, sizes, seed)?;
        let again = |values: Vec<f64>| NpTensor::from_f64s(t.dtype(), t.shape(), &values);
        let changed = if let Some(rows) = self.rows.get_mut(name) {
            again((0..t.len()).map(|_| rows.take() as f64).collect())
        } else if name.to_ascii_lowercase().contains("mask") {
            if style == Style::Extents { again(vec![1.0; t.len()]) } else { None }
        } else if t.dtype().is_float() && style != Style::Normal {
            again(t.to_f64().into_iter().map(|v| style.element(v)).collect())
        } else {
            None
        };
        Ok(changed.unwrap_or(t))
    }

    /// How much of the tables was read by all trials made so far.
    pub(super) fn coverage(&self) -> Vec<Coverage> {
        let of = |(input, r): (&String, &Rows)| Coverage {
            input: input.clone(),
            rows: r.order.len(),
            differing: r.differing,
            read: r.read,
        };
        self.rows.iter().map(of).collect()
    }
}

impl Rows {
    fn take(&mut self) -> i64 {
        let row = self.order[self.next % self.order.len()];
        self.next += 1;
        self.read = self.read.max(self.next.min(self.order.len()));
        row
    }
}

/// The rows of the smallest table, those first that differ between A's tables and B's.
fn rows_to_read(a: &Graph, of_a: &[ValueId], b: &Graph, of_b: &[ValueId], seed: u64) -> Option<Rows> {
    let count = |g: &Graph, v: ValueId| g.initializer(v).and_then(|t| usize::try_from(*t.dims().first()?).ok());
    let rows = of_a.iter().filter_map(|v| count(a, *v)).min().filter(|n| *n > 0)?;
    let mut differs = vec![false; rows];
    for (i, v) in of_a.iter().enumerate() {
        // The same name, or else the same place.
        let name = a.name(*v);
        let Some(w) = of_b.iter().find(|w| b.name(**w) == name).or(of_b.get(i)) else { continue };
        mark_differing(a, *v, b, *w, &mut differs);
    }
    let (mut order, mut rest): (Vec<i64>, Vec<i64>) = (0..rows as i64).partition(|r| differs[*r as usize]);
    let differing = order.len();
    let mut random = Random::new(seed, "rows of tables");
    for i in (1..rest.len()).rev() {
        rest.swap(i, random.below(i as u64 + 1) as usize);
    }
    order.extend(rest);
    Some(Rows { order, differing, next: 0, read: 0 })
}

fn mark_differing(a: &Graph, v: ValueId, b: &Graph, w: ValueId, differs: &mut [bool]) {
    let (Some(t), Some(u)) = (a.initializer(v), b.initializer(w)) else { return };
    if t.dims() != u.dims() || t.dtype() != u.dtype() {
        return;
    }
    let (Ok(x), Ok(y)) = (t.bytes(), u.bytes()) else { return };
    let Some(width) = t.dims().first().and_then(|n| x.len().checked_div(*n as usize)).filter(|w| *w > 0) else { return };
    for ((x, y), d) in x.chunks_exact(width).zip(y.chunks_exact(width)).zip(differs) {
        *d |= x != y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::ir::{Attrs, DType, Dim, Op, Tensor, TensorType, ValueType};

    fn embedding(rows: i64, changed: Option<usize>) -> Graph {
        let mut g = Graph::default();
        let shape = [Dim::symbol("batch"), Dim::from(4)];
        let ids = g.add_input("ids", TensorType::new(DType::I64, shape).into(), None);
        let mut values: Vec<f32> = (0..2 * rows).map(|i| i as f32).collect();
        if let Some(row) = changed {
            values[2 * row] += 1.0;
        }
        let table = g.add_initializer("table", Tensor::f32s(&[rows, 2], &values), false);
        let n = g.add_op("", Op::new("Gather", Attrs::new()), &[Some(table), Some(ids)]);
        let y = g.push_result(n, "y", ValueType::default());
        g.add_output(y, None);
        g
    }

    #[test]
    fn rows_that_differ_are_read_first_and_then_all_others() {
        let (a, b, given) = (embedding(50, None), embedding(50, Some(37)), Tensors::new());
        let mut planner = Planner::new(&a, &b, &given, 0);
        let base = Sizes::from([("batch".to_string(), 2)]);
        let first = planner.first(&base).unwrap();
        assert_eq!(first.inputs["ids"].to_i64()[0], 37);
        let other = planner.other_sizes(&base, &Sizes::new());
        assert_eq!(other[0], Sizes::from([("batch".to_string(), 13)]));
        let trials = planner.trials(first, Some(&other[0]), 2).unwrap();
        let mut read: Vec<i64> = trials.iter().flat_map(|t| t.inputs["ids"].to_i64()).collect();
        read.sort_unstable();
        read.dedup();
        assert_eq!(read, (0..50).collect::<Vec<i64>>());
        let c = planner.coverage().remove(0);
        assert_eq!((c.rows, c.differing, c.read), (50, 1, 50));
    }

    #[test]
    fn styles_are_what_they_say() {
        let mut g = Graph::default();
        let x = g.add_input("x", TensorType::new(DType::F32, [Dim::symbol("batch"), Dim::from(30)]).into(), None);
        g.add_output(x, None);
        let given = Tensors::new();
        let mut planner = Planner::new(&g, &g, &given, 5);
        let base = Sizes::from([("batch".to_string(), 2)]);
        let first = planner.first(&base).unwrap();
        let trials = planner.trials(first, None, 8).unwrap();
        let of = |style: Style| trials.iter().find(|t| t.style == style).unwrap().inputs["x"].to_f64();
        assert!(of(Style::Zeros).iter().all(|v| *v == 0.0));
        assert!(of(Style::Ties).iter().all(|v| [-1.0, 0.0, 1.0].contains(v)));
        assert!(of(Style::Large).iter().any(|v| v.abs() > 10.0));
        assert_eq!(of(Style::Normal).iter().map(|v| -v).collect::<Vec<_>>(), of(Style::Negated));
        assert_ne!(trials[0].inputs, trials[7].inputs);
    }
}

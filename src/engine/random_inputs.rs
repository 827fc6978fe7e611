//! Inputs to try a model on: random, but such that the model can run, and the same for the same seed.
//!
//! Floats are normal. An integer that is used as an index stays below the extent it indexes. Masks are ones up to a random
//! length, then zeros, as padding makes them; their first column is always one, so no row of attention is empty.
//! Weights of classes are positive.

use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{DType, Dim, Graph, NodeId, ValueId};
use ancre_passes::ops::constant_ints;
use ancre_passes::random::Random;
use indexmap::IndexMap;
use std::collections::HashSet;

/// Values of the symbols in the shapes of a model's inputs.
pub type Sizes = IndexMap<String, i64>;

/// Integers that are no index stay below this.
const UNBOUNDED: u64 = 10;

/// Choices of sizes for the symbols of the inputs' shapes, the most natural first; `given` overrides by name. A model that
/// fails with one choice may run with another, for example where a size must be a multiple of a patch.
pub fn sizes(g: &Graph, given: &Sizes) -> Vec<Sizes> {
    let kinds = extent_kinds(g);
    let choice = |pick: &dyn Fn(ExtentKind) -> i64| -> Sizes {
        let size =
            |(name, kind): (&String, &ExtentKind)| (name.clone(), given.get(name).copied().unwrap_or_else(|| pick(*kind)));
        kinds.iter().map(size).collect()
    };
    let mut choices: Vec<Sizes> = Vec::new();
    let pickers: [&dyn Fn(ExtentKind) -> i64; 4] = [
        &ExtentKind::natural,
        &|kind| if kind == ExtentKind::Space { 224 } else { kind.natural() },
        &|kind| if kind == ExtentKind::Batch { 1 } else { kind.natural() },
        &|_| 1,
    ];
    for pick in pickers {
        let c = choice(pick);
        if !choices.contains(&c) {
            choices.push(c);
        }
    }
    choices
}

/// What each symbol in the shapes of the inputs counts.
pub(crate) fn extent_kinds(g: &Graph) -> IndexMap<String, ExtentKind> {
    let mut kinds: IndexMap<String, ExtentKind> = IndexMap::new();
    for v in g.required_inputs() {
        let shape = g.value(v).ty.shape.as_deref().unwrap_or_default();
        for (axis, d) in shape.iter().enumerate() {
            for symbol in d.symbols() {
                kinds.entry(symbol.to_string()).or_insert_with(|| ExtentKind::guess(symbol, axis, shape.len()));
            }
        }
    }
    kinds
}

/// What a symbolic extent counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtentKind {
    Batch,
    Sequence,
    Space,
    Other,
}

impl ExtentKind {
    fn guess(symbol: &str, axis: usize, rank: usize) -> ExtentKind {
        let s = symbol.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|w| s.contains(w));
        if has(&["batch"]) || ["n", "b", "bs"].contains(&s.as_str()) {
            ExtentKind::Batch
        } else if has(&["seq", "len", "time", "token", "step"]) || ["t", "s", "l"].contains(&s.as_str()) {
            ExtentKind::Sequence
        } else if has(&["height", "width", "size"]) || ["h", "w"].contains(&s.as_str()) {
            ExtentKind::Space
        } else if axis == 0 {
            ExtentKind::Batch
        } else if rank == 4 && axis >= 2 {
            ExtentKind::Space
        } else if axis == 1 && rank <= 3 {
            ExtentKind::Sequence
        } else {
            ExtentKind::Other
        }
    }

    fn natural(self) -> i64 {
        match self {
            ExtentKind::Batch => 2,
            ExtentKind::Sequence => 8,
            ExtentKind::Space => 64,
            ExtentKind::Other => 4,
        }
    }
}

/// Random values for every required input. Fails when an input's type or rank is unknown, a symbol has no size, or a type
/// cannot be made up.
pub fn random_inputs(g: &Graph, sizes: &Sizes, seed: u64) -> Result<Tensors, String> {
    g.required_inputs().map(|v| Ok((g.name(v).to_string(), random_input(g, v, sizes, seed)?))).collect()
}

/// A random value for one input.
pub fn random_input(g: &Graph, v: ValueId, sizes: &Sizes, seed: u64) -> Result<NpTensor, String> {
    let name = g.name(v);
    let ty = g.tensor_type(v).ok_or_else(|| {
        format!(
            "input `{name}` is declared as {}; without its type and rank no value can be made up: feed it with --input {name}=FILE.npy",
            g.value(v).ty
        )
    })?;
    let extent = |d: &Dim| {
        d.eval(&|s| sizes.get(s).copied())
            .and_then(|d| usize::try_from(d).ok())
            .ok_or_else(|| format!("input `{name}`: extent {d} has no size; give one with --dim {d}=N"))
    };
    let shape = ty.shape.iter().map(extent).collect::<Result<Vec<usize>, _>>()?;
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|n| *n < 1 << 40);
    let count = count.ok_or_else(|| format!("input `{name}` of shape {shape:?} is too large to make up"))?;
    let mut random = Random::new(seed, name);
    let is_mask = name.to_ascii_lowercase().contains("mask");
    let values: Vec<f64> = if is_mask && !shape.is_empty() {
        mask(&mut random, &shape)
    } else if ty.dtype.is_float() && name.ends_with("class_weights") {
        (0..count).map(|_| 0.5 + random.normal().abs()).collect()
    } else if ty.dtype.is_float() {
        (0..count).map(|_| random.normal()).collect()
    } else if ty.dtype == DType::Bool {
        (0..count).map(|_| random.below(2) as f64).collect()
    } else {
        let bound = index_bound(g, v, sizes).unwrap_or(if is_mask { 2 } else { UNBOUNDED });
        (0..count).map(|_| random.below(bound) as f64).collect()
    };
    NpTensor::from_f64s(ty.dtype, &shape, &values)
        .ok_or_else(|| format!("input `{name}` has element type {}, of which no value can be made up or read", ty.dtype))
}

/// Ones up to a random length of each row, at least half of it, then zeros.
fn mask(random: &mut Random, shape: &[usize]) -> Vec<f64> {
    let row = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().product::<usize>().checked_div(row).unwrap_or(0);
    let mut values = Vec::with_capacity(rows * row);
    for _ in 0..rows {
        let kept = row - random.below(row as u64 / 2 + 1) as usize;
        values.extend((0..row).map(|i| (i < kept) as u8 as f64));
    }
    values
}

/// The readers of a value, as (node, operand). Operators that only move elements are passed through.
fn readers(g: &Graph, v: ValueId) -> Vec<(NodeId, usize)> {
    let mut seen = HashSet::new();
    let mut open = vec![v];
    let mut found = Vec::new();
    while let Some(v) = open.pop() {
        if !seen.insert(v) {
            continue;
        }
        for (node, operand) in g.uses_in_order(v) {
            let Some(op) = g.op(node) else { continue };
            match op.name.as_str() {
                "Cast" | "Identity" | "Reshape" | "Unsqueeze" | "Squeeze" | "Flatten" | "Transpose" | "Slice" | "Expand"
                | "Concat" | "Split" | "Tile" | "Where" | "Clip" | "Min" | "Max" | "Mod" | "Pad" => {
                    open.extend(g.results(node))
                }
                _ => found.push((node, operand)),
            }
        }
    }
    found
}

/// The constant tables that an input indexes by row: a row of the table for each of its elements.
pub(crate) fn indexed_tables(g: &Graph, v: ValueId) -> Vec<ValueId> {
    let table = |(node, operand): (NodeId, usize)| {
        let op = g.op(node)?;
        let place = match (op.name.as_str(), operand) {
            ("Gather", 1) if op.int("axis") == 0 => 0,
            ("EmbedLayerNormalization", 0) => 2,
            ("EmbedLayerNormalization", 1) => 4,
            _ => return None,
        };
        g.operand(node, place).filter(|t| g.initializer(*t).is_some_and(|t| !t.dims().is_empty()))
    };
    let mut tables: Vec<ValueId> = readers(g, v).into_iter().filter_map(table).collect();
    tables.sort_unstable();
    tables.dedup();
    tables
}

/// The bound below which this value indexes all that it indexes; `None` when it is no index.
fn index_bound(g: &Graph, v: ValueId, sizes: &Sizes) -> Option<u64> {
    let limit = |(node, operand): (NodeId, usize)| -> Option<u64> {
        let op = g.op(node)?;
        // A computed tensor may have any extent; its element 0 exists.
        let extent = |operand: usize, axis: i64| Some(extent(g, g.operand(node, operand)?, axis, sizes).unwrap_or(1));
        match (op.name.as_str(), operand) {
            ("Gather" | "GatherElements" | "ScatterElements" | "Scatter", 1) => extent(0, op.int("axis")),
            // ids into the table of words, segments into their own
            ("EmbedLayerNormalization", 0) => extent(2, 0),
            ("EmbedLayerNormalization", 1) => extent(4, 0),
            // The last axis holds one index for each of some axes.
            ("GatherND" | "ScatterND", 1) => {
                let (first, axes) = (op.int("batch_dims"), extent(1, -1)? as i64);
                (first..first + axes).filter_map(|axis| extent(0, axis)).min()
            }
            ("OneHot", 0) => g
                .operand(node, 1)
                .and_then(|depth| g.constant(depth)?.to_i64().ok()?.first().map(|d| *d as u64))
                .or_else(|| self::extent(g, g.result(node, 0), op.int("axis"), sizes)),
            // One-hot by comparison with 0, 1, 2, …
            ("Equal", side) => g
                .operand(node, 1 - side.min(1))
                .and_then(|classes| constant_ints(g, classes).filter(|c| c.len() > 1))
                .and_then(|classes| u64::try_from(classes.iter().max()? + 1).ok()),
            ("SoftmaxCrossEntropyLoss" | "NegativeLogLikelihoodLoss", 1) => extent(0, 1),
            _ => None,
        }
    };
    readers(g, v).into_iter().filter_map(limit).filter(|b| *b > 0).min()
}

fn extent(g: &Graph, v: ValueId, axis: i64, sizes: &Sizes) -> Option<u64> {
    let ty = g.tensor_type(v)?;
    u64::try_from(ty.shape.get(ty.axis(axis)?)?.eval(&|s| sizes.get(s).copied())?).ok()
}

/// Reads the options `--dim NAME=N`.
pub fn dims(a: &[String]) -> Result<Sizes, Failure> {
    a.iter()
        .map(|text| {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            match value.parse::<i64>() {
                Ok(v) if v > 0 && !name.is_empty() => Ok((name.to_string(), v)),
                _ => Err(Failure::input(format!("--dim `{text}` is not NAME=N with a positive N"))),
            }
        })
        .collect()
}

/// Checks that `--dim` names symbols of the inputs' shapes.
pub fn check_dims(g: &Graph, dims: &Sizes) -> Result<(), Failure> {
    let mut symbols: Vec<String> = extent_kinds(g).into_keys().collect();
    symbols.sort();
    match dims.keys().find(|name| !symbols.contains(name)) {
        None => Ok(()),
        Some(name) if symbols.is_empty() => {
            Err(Failure::input(format!("--dim {name}: the model's inputs have no symbolic dimension")))
        }
        Some(name) => {
            Err(Failure::input(format!("--dim {name}: the inputs' symbolic dimensions are {}", symbols.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::ir::{Attrs, Op, Tensor, TensorType, ValueType};

    fn embedding() -> Graph {
        let mut g = Graph::default();
        let shape = [Dim::symbol("batch"), Dim::symbol("sequence_length")];
        let ids = g.add_input("input_ids", TensorType::new(DType::I64, shape.clone()).into(), None);
        let mask = g.add_input("attention_mask", TensorType::new(DType::I64, shape).into(), None);
        let table = g.add_initializer("table", Tensor::f32s(&[5, 2], &[0.0; 10]), false);
        let flat = g.add_op("", Op::new("Flatten", Attrs::new()), &[Some(ids)]);
        let flat = g.push_result(flat, "flat", ValueType::default());
        let gather = g.add_op("", Op::new("Gather", Attrs::new()), &[Some(table), Some(flat)]);
        let y = g.push_result(gather, "y", ValueType::default());
        g.add_output(y, None);
        g.add_output(mask, None);
        g
    }

    #[test]
    fn indices_stay_in_their_table_and_masks_are_padding() {
        let g = embedding();
        let given = Sizes::from([("sequence_length".to_string(), 200)]);
        let sizes = sizes(&g, &given).remove(0);
        assert_eq!(sizes, Sizes::from([("batch".into(), 2), ("sequence_length".into(), 200)]));
        let t = random_inputs(&g, &sizes, 7).unwrap();
        let ids = t["input_ids"].to_i64();
        assert_eq!((ids.len(), ids.iter().min(), ids.iter().max()), (400, Some(&0), Some(&4)));
        for row in t["attention_mask"].to_i64().chunks(200) {
            assert!(row[0] == 1 && row.is_sorted_by(|a, b| a >= b), "{row:?}");
        }
    }

    /// `at` indexes rows, `pairs` rows and columns, `one` a tensor whose extent only the run tells.
    #[test]
    fn indices_stay_in_computed_tensors() {
        let g = ancre_passes::text::parse(
            "net (float[3, 4] x, int64[50] at, int64[50, 2] pairs, int64[50] one) => (a, b, c)
             { s = Relu (x) a = Gather (s, at) b = GatherND (s, pairs) n = NonZero (x) c = Gather <axis = 1> (n, one) }",
        );
        let t = random_inputs(&g.unwrap(), &Sizes::new(), 0).unwrap();
        let largest = |name: &str| t[name].to_i64().into_iter().max();
        assert_eq!([largest("at"), largest("pairs"), largest("one")], [Some(2), Some(2), Some(0)]);
    }

    #[test]
    fn labels_stay_below_the_number_of_classes() {
        let mut g = Graph::default();
        let labels = g.add_input("labels", TensorType::new(DType::I64, [Dim::from(64), Dim::from(1)]).into(), None);
        let classes = g.add_initializer("classes", Tensor::i64s(&[3], &[0, 1, 2]), false);
        let equal = g.add_op("", Op::new("Equal", Attrs::new()), &[Some(labels), Some(classes)]);
        let y = g.push_result(equal, "y", ValueType::default());
        g.add_output(y, None);
        let values = random_inputs(&g, &Sizes::new(), 0).unwrap()["labels"].to_i64();
        assert_eq!((values.iter().min(), values.iter().max()), (Some(&0), Some(&2)));
    }

    #[test]
    fn a_seed_is_a_seed() {
        let g = embedding();
        let sizes = sizes(&g, &Sizes::new()).remove(0);
        assert_eq!(random_inputs(&g, &sizes, 1), random_inputs(&g, &sizes, 1));
        assert_ne!(random_inputs(&g, &sizes, 1), random_inputs(&g, &sizes, 2));
    }

    #[test]
    fn an_unknown_rank_is_said_so() {
        let mut g = Graph::default();
        let x = g.add_input("x", ValueType { dtype: Some(DType::F32), shape: None }, None);
        g.add_output(x, None);
        let e = random_inputs(&g, &Sizes::new(), 0).unwrap_err();
        assert!(e.contains("input `x`") && e.contains("feed it"), "{e}");
    }
}

//! Where each operator puts the samples of its operands, and which operators would mix them.

pub(super) mod bring;
mod indexed;
mod moves;
mod products;
mod shapes;

use super::edit::Edit;
use super::integers::{self, Integers};
use super::place::Place;
use super::{Analysis, Refusal};
use crate::ir::{ANCRE, Dim, NodeId, ValueId};
use crate::ops::ROUTE_SOURCES;
use bring::Effort;
use std::collections::BTreeMap;

/// Operators that compute each element of the broadcast of their operands by itself.
const ELEMENTWISE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Cast",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
    "Clip",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    // of com.microsoft
    "BiasGelu",
    "FastGelu",
    "QuickGelu",
];

/// Operators that take the samples of their first operand along axis 0, and whose others are parameters.
const SAMPLES_FIRST: &[&str] = &[
    "AveragePool",
    "Col2Im",
    "Conv",
    "ConvTranspose",
    "DeformConv",
    "DepthToSpace",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GroupNormalization",
    "InstanceNormalization",
    "LRN",
    "LpPool",
    "MaxPool",
    "SpaceToDepth",
];

/// Operators along one axis.
const ALONG_AXIS: &[&str] = &["ArgMax", "ArgMin", "CumSum", "Hardmax", "LogSoftmax", "LpNormalization", "Softmax", "TopK"];

/// Operators all of whose operands that carry samples, and all of whose results, carry them along axis 0.
const ALL_FIRST: &[&str] =
    &["Attention", "GridSample", "EmbedLayerNormalization", "MultiHeadAttention", "GroupQueryAttention", "PackedAttention"];

/// What a rule found.
pub(super) enum Outcome {
    /// The places of the results' samples.
    Places(Vec<Option<Place>>),
    /// Integers that depend on the batch.
    Integers(Integers),
    /// The same for every sample, whatever the batch.
    Same,
}

type Found = Result<Outcome, Refusal>;

/// A node whose rule is applied.
pub(super) struct Rule<'r, 'g> {
    pub(super) a: &'r Analysis<'g>,
    pub(super) id: NodeId,
    pub(super) operands: &'r [Option<ValueId>],
    /// What has to change.
    pub(super) edits: Vec<Edit>,
    /// Number of answers.
    pub(super) answers: usize,
    /// Which of them to take.
    pub(super) answer: usize,
    /// How far it may go to bring operands together.
    pub(super) effort: Effort,
    /// Operands whose samples it brings elsewhere, and the axes it puts in front of them.
    pub(super) moved: BTreeMap<usize, (Place, usize)>,
    /// Operands whose integers it takes for what they were in the source.
    pub(super) was: BTreeMap<usize, Integers>,
}

impl Rule<'_, '_> {
    pub(super) fn apply(&mut self) -> Found {
        let found = self.by_name();
        let unclear = match &found {
            Ok(Outcome::Integers(None)) => self.a.as_was,
            Ok(_) => false,
            Err(_) => self.effort > Effort::Asis || self.a.as_was,
        };
        if !unclear {
            return found;
        }
        self.edits.clear();
        self.moved.clear();
        if !self.take_as_was() {
            return found;
        }
        if self.placed().is_empty() {
            let found = integers::evaluate(self.a.g, self.id, &*self);
            return Ok(found.map_or(Outcome::Same, |i| Outcome::Integers(Some(i))));
        }
        self.by_name()
    }

    fn by_name(&mut self) -> Found {
        let g = self.a.g;
        let op = g.op(self.id).ok_or("it is no operator")?;
        let name = op.name.as_str();
        if op.is_ancre("Route") {
            let sources: Vec<usize> = (ROUTE_SOURCES..self.operands.len()).collect();
            return self.elementwise(&sources);
        }
        if op.domain == ANCRE {
            return Err("no rule says where it puts the samples".into());
        }
        // Integers about shapes are no values of the samples.
        if let Some(i) =
            integers::evaluate(g, self.id, &*self).filter(|_| self.placed().is_empty() || name == "Shape" || name == "Size")
        {
            return Ok(Outcome::Integers(Some(i)));
        }
        if let Some(found) = self.by_shape(name)? {
            return Ok(found);
        }
        if let Some(i) = (0..self.operands.len()).find(|i| self.depends(*i)) {
            // Whatever it is computed from them, it is no longer known.
            if self.placed().is_empty() && !self.float_result() {
                return Ok(Outcome::Integers(None));
            }
            return Err(format!("operand {i} is computed from the number of samples"));
        }
        let everything: Vec<usize> = (0..self.operands.len()).filter(|i| self.operands[*i].is_some()).collect();
        match name {
            n if ELEMENTWISE.contains(&n) => self.elementwise(&everything),
            "CastLike" | "QuantizeLinear" | "DequantizeLinear" => self.elementwise(&[0]),
            n if SAMPLES_FIRST.contains(&n) => self.samples_first(),
            n if ALONG_AXIS.contains(&n) => self.along_axis(n),
            n if ALL_FIRST.contains(&n) => self.all_first(),
            n if n.starts_with("Reduce") => self.reduce(),
            "BatchNormalization" => self.batch_normalization(),
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => self.layer_normalization(),
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => self.skip_layer_normalization(),
            "MatMul" | "FusedMatMul" => self.matmul(),
            "Gemm" | "FusedGemm" => self.gemm(),
            "FusedConv" => self.fused_conv(),
            "Einsum" => self.einsum(),
            "Transpose" => self.transpose(),
            "Squeeze" | "Unsqueeze" => self.squeeze(name == "Unsqueeze"),
            "Flatten" => self.flatten(),
            "Concat" => self.concat(),
            "Split" => self.keeps_axis("it splits the samples", |r, p| r.axis_attr(0).map(|a| a != p.axis)),
            "Slice" => self.slice(),
            "Pad" => self.pad(),
            "Trilu" => self.keeps_axis("it is triangular over the samples", |r, p| Ok(p.axis + 2 < r.rank(0)?)),
            "Gather" => self.gather(),
            "GatherElements" | "ScatterElements" => self.elements_along(name),
            "GatherND" => self.gather_nd(),
            "ScatterND" => self.scatter_nd(),
            "DFT" => self.fourier(),
            "OneHot" => self.one_hot(),
            "RotaryEmbedding" => self.rotary(),
            "LSTM" | "GRU" | "RNN" => self.recurrent(),
            _ => Err("no rule says whether it keeps the samples of a batch apart".into()),
        }
    }

    // ---- reading ----------------------------------------------------------------------------------------------------

    pub(super) fn place(&self, i: usize) -> Option<&Place> {
        let v = self.operands.get(i).copied().flatten()?;
        self.moved.get(&i).map(|m| &m.0).or_else(|| self.a.places.get(&v))
    }

    fn placed(&self) -> Vec<usize> {
        (0..self.operands.len()).filter(|i| self.place(*i).is_some()).collect()
    }

    fn need(&self, i: usize) -> Result<Place, Refusal> {
        self.place(i).cloned().ok_or_else(|| format!("operand {i} carries no samples, but another one does"))
    }

    /// No operand but these may carry samples.
    fn only(&self, which: &[usize]) -> Result<(), Refusal> {
        match self.placed().into_iter().find(|i| !which.contains(i)) {
            Some(i) => Err(format!("its operand {i}, a parameter of the operator, depends on the samples")),
            None => Ok(()),
        }
    }

    pub(super) fn shape(&self, i: usize) -> Result<Vec<Dim>, Refusal> {
        let v = self.operands.get(i).copied().flatten().ok_or_else(|| format!("operand {i} is missing"))?;
        let mut shape = vec![Dim::from(1); self.moved.get(&i).map_or(0, |m| m.1)];
        shape.extend(self.a.shape(v)?);
        Ok(shape)
    }

    fn rank(&self, i: usize) -> Result<usize, Refusal> {
        Ok(self.shape(i)?.len())
    }

    fn result_shape(&self) -> Result<Vec<Dim>, Refusal> {
        self.a.shape(self.a.g.result(self.id, 0))
    }

    fn integers(&self, i: usize) -> Option<&Integers> {
        if let Some(was) = self.was.get(&i) {
            return Some(was);
        }
        self.a.integers.get(&self.operands.get(i).copied().flatten()?)
    }

    /// The elements of an integer operand for the new batch, if they can be told.
    pub(super) fn extents(&self, i: usize) -> Option<Vec<Dim>> {
        self.integers(i)?.as_ref()?.extents()
    }

    /// The same as numbers.
    pub(super) fn numbers(&self, i: usize) -> Option<Vec<i64>> {
        self.integers(i)?.as_ref()?.ints()
    }

    fn depends(&self, i: usize) -> bool {
        self.integers(i).is_some_and(|n| integers::depends(n, &self.a.batch))
    }

    fn float_result(&self) -> bool {
        self.a.g.is_float(self.a.g.result(self.id, 0))
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        self.a.g.op(self.id).map_or(default, |op| op.attrs.int(name, default))
    }

    fn opset(&self) -> i64 {
        self.a.g.opsets.get("").copied().unwrap_or(18)
    }

    /// The attribute `axis`, counted from the front of operand 0.
    fn axis_attr(&self, default: i64) -> Result<usize, Refusal> {
        let (axis, rank) = (self.int("axis", default), self.rank(0)? as i64);
        usize::try_from(if axis < 0 { axis + rank } else { axis }).map_err(|_| format!("its axis {axis} is out of range"))
    }

    /// A list of integers given as an attribute or an operand.
    fn listed(&self, name: &str, operand: usize) -> Result<Option<Vec<i64>>, Refusal> {
        if let Some(list) = self.a.g.op(self.id).and_then(|op| op.attrs.ints(name)) {
            return Ok(Some(list.to_vec()));
        }
        if self.operands.get(operand).copied().flatten().is_none() {
            return Ok(None);
        }
        self.numbers(operand).map(Some).ok_or_else(|| format!("its {name} are computed in the graph"))
    }

    fn all(&self, p: Place) -> Found {
        let results = self.a.g.node(self.id).results().len();
        Ok(Outcome::Places(vec![Some(p); results]))
    }

    // ---- broadcasting -------------------------------------------------------------------------------------------------

    /// Lets an operand without samples meet one with samples along `axis` of its own: by broadcasting where its extent is 1, else
    /// repeated for every sample.
    fn meet(&mut self, i: usize, axis: usize, p: &Place, broadcasts: bool) -> Result<(), Refusal> {
        let d = self.shape(i)?.get(axis).cloned().ok_or("an operand has too few axes")?;
        if d.is_one() && (broadcasts || self.a.before != 1) && (p.is_pure() || broadcasts) {
            return if broadcasts { Ok(()) } else { self.repeat(i, axis, p) };
        }
        if self.a.before == 1 {
            return if d == p.beside() { self.repeat(i, axis, p) } else { Err(self.odd(i, &d, p)) };
        }
        if d == p.extent(&Dim::from(self.a.before)) && p.is_pure() {
            if !self.equal_along(i, axis) {
                return Err(format!("operand {i} is a constant that differs from sample to sample"));
            }
            self.edits.push(Edit::First { operand: i, axis });
            return if broadcasts { Ok(()) } else { self.repeat(i, axis, p) };
        }
        Err(self.odd(i, &d, p))
    }

    fn odd(&self, i: usize, d: &Dim, p: &Place) -> Refusal {
        format!("operand {i} has extent {d} where the samples lie ({} for each sample)", p.beside())
    }

    fn repeat(&mut self, i: usize, axis: usize, p: &Place) -> Result<(), Refusal> {
        if !p.outer.is_one() {
            return Err(format!("operand {i} would have to be repeated inside an axis"));
        }
        self.edits.push(Edit::Repeat { operand: i, axis });
        Ok(())
    }

    /// A constant whose parts for all samples are equal; what is no constant is taken for such.
    fn equal_along(&self, i: usize, axis: usize) -> bool {
        let Some(t) = self.operands[i].and_then(|v| self.a.g.constant(v)) else { return true };
        let Ok(values) = t.to_f64() else { return true };
        let inner: i64 = t.dims()[axis + 1..].iter().product();
        let n = t.dims()[axis];
        values.chunks((inner * n).max(1) as usize).all(|block| {
            let first = &block[..inner as usize];
            block.chunks(inner.max(1) as usize).all(|part| part == first)
        })
    }

    /// Aligns operands from their last axes; those with samples must have them at one place of a result of that rank.
    fn aligned(&mut self, which: &[usize], rank: usize) -> Result<Place, Refusal> {
        let mut p = self.agree(which, rank, true, |_| true).ok_or_else(|| match self.placed().as_slice() {
            [] => "no operand carries samples".into(),
            [one] => format!("the samples of operand {one} cannot be brought to where it needs them"),
            [i, j, ..] => format!("operands {i} and {j} have the samples in different places"),
        })?;
        // What differs along an axis can be repeated for every sample only if that is done as a whole.
        let differs = |r: &Self, i: usize| {
            let own = r.shape(i).ok()?;
            let d = own.get(p.axis.checked_sub(rank.checked_sub(own.len())?)?)?;
            (r.place(i).is_none() && !d.is_one()).then_some(())
        };
        if !p.outer.is_one() && which.iter().any(|i| differs(self, *i).is_some()) {
            p = self.agree(which, rank, true, |q| q.outer.is_one()).unwrap_or(p);
        }
        for &i in which {
            if self.place(i).is_none() {
                let missing = rank - self.rank(i)?.min(rank);
                if p.axis >= missing {
                    self.meet(i, p.axis - missing, &p, true)?;
                }
            }
        }
        Ok(p)
    }

    fn elementwise(&mut self, which: &[usize]) -> Found {
        let rank = self.result_shape()?.len();
        let p = self.aligned(which, rank)?;
        self.all(p)
    }

    // ---- operators ----------------------------------------------------------------------------------------------------

    /// The first operand's place, if the condition holds for it.
    fn keeps_axis(&mut self, why: &str, holds: impl Fn(&Self, &Place) -> Result<bool, Refusal>) -> Found {
        self.only(&[0])?;
        let p = self.settle(0, why, holds)?;
        self.all(p)
    }

    fn samples_first(&mut self) -> Found {
        let g = self.a.g;
        let second = g.results(self.id).nth(1);
        if g.is_op(self.id, "MaxPool") && second.is_some_and(|v| g.is_read(v) || g.is_output(v)) {
            return Err("its indices count over all samples".into());
        }
        self.keeps_axis("the samples do not lie along axis 0", |_, p| Ok(p.axis == 0))
    }

    /// The operands without samples get theirs at a place the others have them; the results have them there too.
    fn meet_others(&mut self, which: &[usize], p: Place) -> Found {
        for &i in which {
            if self.place(i).is_none() {
                self.meet(i, p.axis, &p, false)?;
            }
        }
        self.all(p)
    }

    /// A convolution to whose result something is added.
    fn fused_conv(&mut self) -> Found {
        self.only(&[0, 3])?;
        let first = |_: &Self, p: &Place| Ok(p.axis == 0);
        let p = self.settle(0, "the samples do not lie along axis 0", first)?;
        if self.place(3).is_some() && !self.bring(3, &p, 0) {
            return Err("its operands have the samples in different places".into());
        }
        if self.place(3).is_none() && self.operands.get(3).copied().flatten().is_some() {
            self.meet(3, 0, &p, false)?;
        }
        self.all(p)
    }

    fn all_first(&mut self) -> Found {
        let placed = self.placed();
        for &i in &placed {
            self.settle(i, &format!("the samples of operand {i} do not lie along axis 0"), |_, p| Ok(p.axis == 0))?;
        }
        let p = self.need(placed[0])?;
        if let Some(i) = placed.iter().find(|i| self.place(**i) != Some(&p)) {
            return Err(format!("operands {} and {i} have the samples in different places", placed[0]));
        }
        let (name, first) = (self.a.g.op(self.id).map(|o| o.name.clone()).unwrap_or_default(), self.rank(0)?);
        for i in 0..self.operands.len() {
            // Parameters have fewer axes than what they are applied to; masks broadcast.
            let other = self.operands[i].is_some() && self.place(i).is_none();
            let mask = name == "Attention" && i == 3;
            if other && !mask && (name == "Attention" || name == "GridSample") && self.rank(i)? >= first {
                self.meet(i, 0, &p, false)?;
            } else if other && mask && self.rank(i)? == 4 {
                self.meet(i, 0, &p, true)?;
            }
        }
        self.all(p)
    }

    fn along_axis(&mut self, name: &str) -> Found {
        let old = self.opset() < 13 && name.ends_with("max") && !name.starts_with("Arg");
        let axis = match name {
            "CumSum" => {
                let axis = self.listed("axis", 1)?.and_then(|a| a.first().copied()).ok_or("its axis is unknown")?;
                (if axis < 0 { axis + self.rank(0)? as i64 } else { axis }) as usize
            }
            "ArgMax" | "ArgMin" => self.axis_attr(0)?,
            _ => self.axis_attr(if old { 1 } else { -1 })?,
        };
        self.only(&[0])?;
        let mut p = self.settle(0, "it computes over the samples", |_, p| Ok(p.axis < axis || p.axis > axis && !old))?;
        if name.starts_with("Arg") && self.int("keepdims", 1) == 0 && p.axis > axis {
            p.axis -= 1;
        }
        self.all(p)
    }

    fn reduce(&mut self) -> Found {
        self.only(&[0])?;
        let rank = self.rank(0)? as i64;
        let axes = match self.listed("axes", 1)? {
            Some(axes) if !axes.is_empty() => axes,
            _ if self.int("noop_with_empty_axes", 0) == 1 => return self.all(self.need(0)?),
            _ => return Err("it reduces over everything, the samples too".into()),
        };
        let axes: Vec<usize> = axes.iter().map(|a| (if *a < 0 { a + rank } else { *a }) as usize).collect();
        let mut p = self.settle(0, "it reduces over the samples", |_, p| Ok(!axes.contains(&p.axis)))?;
        if self.int("keepdims", 1) == 0 {
            p.axis -= axes.iter().filter(|a| **a < p.axis).count();
        }
        self.all(p)
    }

    fn batch_normalization(&mut self) -> Found {
        if self.int("training_mode", 0) == 1 {
            return Err("it is in training mode and normalises over the samples".into());
        }
        self.keeps_axis("the samples lie along the channels", |_, p| Ok(p.axis != 1))
    }

    fn layer_normalization(&mut self) -> Found {
        self.keeps_axis("it normalises over the samples", |r, p| Ok(p.axis < r.axis_attr(-1)?))
    }

    fn skip_layer_normalization(&mut self) -> Found {
        self.only(&[0, 1])?;
        let rank = self.rank(0)?;
        let p = self.aligned(&[0, 1], rank)?;
        if p.axis + 1 == rank { Err("it normalises over the samples".into()) } else { self.all(p) }
    }
}

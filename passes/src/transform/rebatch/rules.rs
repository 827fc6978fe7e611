//! Where each operator puts the samples of its operands, and which operators would mix them.

use super::edit::{Edit, Entry};
use super::integers::{self, Integers};
use super::place::{self, Place};
use super::{Analysis, Refusal};
use crate::analysis::facts::is_unnamed;
use crate::ir::{ANCRE, Dim, NodeId, Operands};
use crate::ops::ROUTE_SOURCES;

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
}

type Found = Result<Outcome, Refusal>;

/// A node whose rule is applied.
pub(super) struct Rule<'r, 'g> {
    pub(super) a: &'r Analysis<'g>,
    pub(super) id: NodeId,
    pub(super) operands: &'r Operands,
    /// What has to change.
    pub(super) edits: Vec<Edit>,
    /// Number of answers.
    pub(super) answers: usize,
    /// Which of them to take.
    pub(super) answer: usize,
}

impl Rule<'_, '_> {
    pub(super) fn apply(&mut self) -> Found {
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
            integers::evaluate(self.a, self.id).filter(|_| self.placed().is_empty() || name == "Shape" || name == "Size")
        {
            return Ok(Outcome::Integers(i));
        }
        if let Some(found) = self.by_shape(name)? {
            return Ok(found);
        }
        if let Some(i) = (0..self.operands.len()).find(|i| self.depends(*i)) {
            // Whatever it is computed from them, it is no longer known.
            if self.placed().is_empty() && !self.float_result() {
                return Ok(Outcome::Integers(Integers::Depends));
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
            "Gemm" => self.gemm(),
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
            "OneHot" => self.one_hot(),
            "RotaryEmbedding" => self.rotary(),
            _ => Err("no rule says whether it keeps the samples of a batch apart".into()),
        }
    }

    // ---- reading ----------------------------------------------------------------------------------------------------

    pub(super) fn place(&self, i: usize) -> Option<&Place> {
        self.a.places.get(&self.operands.get(i).copied().flatten()?)
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
        self.a.shape(v)
    }

    fn rank(&self, i: usize) -> Result<usize, Refusal> {
        Ok(self.shape(i)?.len())
    }

    fn result_shape(&self) -> Result<Vec<Dim>, Refusal> {
        self.a.shape(self.a.g.result(self.id, 0))
    }

    fn integers(&self, i: usize) -> Option<&Integers> {
        self.a.integers.get(&self.operands.get(i).copied().flatten()?)
    }

    fn depends(&self, i: usize) -> bool {
        self.integers(i).is_some_and(|n| n.depends(&self.a.batch))
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
        let numbers = self.integers(operand).and_then(Integers::numbers);
        numbers.map(Some).ok_or_else(|| format!("its {name} are computed in the graph"))
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
        let mut found: Option<(usize, Place)> = None;
        for &i in which {
            let Some(p) = self.place(i) else { continue };
            let p = p.at(p.axis + rank - self.rank(i)?.min(rank));
            match &found {
                Some((other, q)) if *q != p => {
                    return Err(format!(
                        "operands {other} and {i} have the samples in different places (axes {} and {} of the result)",
                        q.axis, p.axis
                    ));
                }
                _ => found = Some((i, p)),
            }
        }
        let (_, p) = found.ok_or("no operand carries samples")?;
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
        let p = self.need(0)?;
        if holds(self, &p)? { self.all(p) } else { Err(why.into()) }
    }

    fn samples_first(&mut self) -> Found {
        let g = self.a.g;
        let second = g.results(self.id).nth(1);
        if g.is_op(self.id, "MaxPool") && second.is_some_and(|v| !g.uses(v).is_empty() || g.is_output(v)) {
            return Err("its indices count over all samples".into());
        }
        self.keeps_axis("the samples do not lie along axis 0", |_, p| Ok(p.axis == 0))
    }

    fn all_first(&mut self) -> Found {
        for i in self.placed() {
            if self.place(i).is_some_and(|p| *p != Place::pure(0)) {
                return Err(format!("the samples of operand {i} do not lie along axis 0"));
            }
        }
        let (name, first) = (self.a.g.op(self.id).map(|o| o.name.clone()).unwrap_or_default(), self.rank(0)?);
        for i in 0..self.operands.len() {
            // Parameters have fewer axes than what they are applied to; masks broadcast.
            let other = self.operands[i].is_some() && self.place(i).is_none();
            let mask = name == "Attention" && i == 3;
            if other && !mask && (name == "Attention" || name == "GridSample") && self.rank(i)? >= first {
                self.meet(i, 0, &Place::pure(0), false)?;
            } else if other && mask && self.rank(i)? == 4 {
                self.meet(i, 0, &Place::pure(0), true)?;
            }
        }
        self.all(Place::pure(0))
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
        let mut p = self.need(0)?;
        if p.axis == axis || (old && p.axis > axis) {
            return Err("it computes over the samples".into());
        }
        if name.starts_with("Arg") && self.int("keepdims", 1) == 0 && p.axis > axis {
            p.axis -= 1;
        }
        self.all(p)
    }

    fn reduce(&mut self) -> Found {
        self.only(&[0])?;
        let (mut p, rank) = (self.need(0)?, self.rank(0)? as i64);
        let axes = match self.listed("axes", 1)? {
            Some(axes) if !axes.is_empty() => axes,
            _ if self.int("noop_with_empty_axes", 0) == 1 => return self.all(p),
            _ => return Err("it reduces over everything, the samples too".into()),
        };
        let axes: Vec<usize> = axes.iter().map(|a| (if *a < 0 { a + rank } else { *a }) as usize).collect();
        if axes.contains(&p.axis) {
            return Err("it reduces over the samples".into());
        }
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
        let p = self.aligned(&[0, 1], self.rank(0)?)?;
        self.only(&[0, 1])?;
        if p.axis + 1 == self.rank(0)? { Err("it normalises over the samples".into()) } else { self.all(p) }
    }

    fn matmul(&mut self) -> Found {
        let (ra, rb) = (self.rank(0)?, self.rank(1)?);
        let flipped = |name: &str| self.int(name, 0) == 1;
        if flipped("transBatchA") || flipped("transBatchB") {
            return Err("its batch axes are transposed".into());
        }
        let rank = ra.max(rb).max(2);
        // Axes of a product of matrices; a vector is a row on the left, a column on the right.
        let (rows, inner_a) = if flipped("transA") { (ra - 1, ra.wrapping_sub(2)) } else { (ra.wrapping_sub(2), ra - 1) };
        let (inner_b, columns) = if flipped("transB") { (rb - 1, rb.wrapping_sub(2)) } else { (rb.wrapping_sub(2), rb - 1) };
        let mut found: Option<Place> = None;
        for (i, r) in [(0, ra), (1, rb)] {
            let Some(p) = self.place(i).cloned() else { continue };
            let (kept, contracted, to) = if i == 0 { (rows, inner_a, rank - 2) } else { (columns, inner_b, rank - 1) };
            let axis = match p.axis {
                x if r == 1 || x == contracted => return Err(format!("it contracts the samples of operand {i}")),
                x if x == kept => to,
                x => x + rank - r,
            };
            let p = p.at(axis);
            if found.as_ref().is_some_and(|q| *q != p) {
                return Err("it multiplies samples with other samples".into());
            }
            found = Some(p);
        }
        let mut p = found.ok_or("no operand carries samples")?;
        if self.placed().len() == 2 && p.axis + 2 >= rank {
            return Err("it multiplies samples with other samples".into());
        }
        if p.axis + 2 < rank {
            for (i, r) in [(0, ra), (1, rb)] {
                let missing = rank - r.max(2).min(rank);
                if self.place(i).is_none() && r > 2 && p.axis >= missing {
                    self.meet(i, p.axis - missing, &p, true)?;
                }
            }
        }
        // The result has no axis for a vector.
        if rb == 1 && p.axis == rank - 1 || ra == 1 && p.axis == rank - 2 {
            return Err("it contracts the samples".into());
        }
        if ra == 1 && p.axis == rank - 1 {
            p.axis -= 1;
        }
        self.all(p)
    }

    fn gemm(&mut self) -> Found {
        let (rows, columns) = (self.int("transA", 0) as usize, 1 - self.int("transB", 0) as usize);
        let p = match (self.place(0).cloned(), self.place(1).cloned()) {
            (Some(p), None) if p.axis == rows => p.at(0),
            (None, Some(p)) if p.axis == columns => p.at(1),
            (None, None) => return Err("only its bias depends on the samples".into()),
            (Some(_), Some(_)) => return Err("it multiplies samples with other samples".into()),
            _ => return Err("it contracts the samples".into()),
        };
        if self.operands.get(2).copied().flatten().is_some() {
            let missing = 2 - self.rank(2)?.min(2);
            match self.place(2) {
                Some(q) if q.at(q.axis + missing) != p => return Err("its bias has the samples elsewhere".into()),
                Some(_) => {}
                None if p.axis >= missing => self.meet(2, p.axis - missing, &p, true)?,
                None => {}
            }
        }
        self.all(p)
    }

    fn einsum(&mut self) -> Found {
        let equation = self.a.g.op(self.id).map(|op| op.attrs.str("equation", "").replace(' ', "")).unwrap_or_default();
        let (inputs, output) = equation.split_once("->").ok_or("its equation names no result")?;
        if equation.contains('.') {
            return Err("its equation has an ellipsis".into());
        }
        let terms: Vec<Vec<char>> = inputs.split(',').map(|t| t.chars().collect()).collect();
        let mut found: Option<(char, Place)> = None;
        for (i, term) in terms.iter().enumerate() {
            let Some(p) = self.place(i).cloned() else { continue };
            let label = *term.get(p.axis).ok_or("its equation does not fit its operands")?;
            if found.as_ref().is_some_and(|(l, q)| *l != label || q.beside() != p.beside() || q.outer != p.outer) {
                return Err("it multiplies samples with other samples".into());
            }
            found = Some((label, p));
        }
        let (label, p) = found.ok_or("no operand carries samples")?;
        let axis = output.chars().position(|c| c == label).ok_or("it contracts the samples")?;
        for (i, term) in terms.iter().enumerate() {
            if self.place(i).is_none()
                && let Some(own) = term.iter().position(|c| *c == label)
            {
                self.meet(i, own, &p, false)?;
            }
        }
        self.all(p.at(axis))
    }

    fn transpose(&mut self) -> Found {
        let (p, rank) = (self.need(0)?, self.rank(0)?);
        let perm = self.listed("perm", usize::MAX)?.unwrap_or_else(|| (0..rank as i64).rev().collect());
        let axis = perm.iter().position(|a| *a == p.axis as i64).ok_or("its permutation does not fit its operand")?;
        self.all(p.at(axis))
    }

    fn squeeze(&mut self, inserts: bool) -> Found {
        self.only(&[0])?;
        let (mut p, rank) = (self.need(0)?, self.rank(0)? as i64);
        let Some(axes) = self.listed("axes", 1)? else {
            let shape = self.shape(0)?;
            if shape[p.axis].is_one() {
                return Err("it removes the axis of the samples, as every axis of extent 1".into());
            }
            p.axis -= shape[..p.axis].iter().filter(|d| d.is_one()).count();
            return self.all(p);
        };
        let rank = if inserts { rank + axes.len() as i64 } else { rank };
        let axes: Vec<usize> = axes.iter().map(|a| (if *a < 0 { a + rank } else { *a }) as usize).collect();
        if inserts {
            p.axis =
                (0..rank as usize).filter(|a| !axes.contains(a)).nth(p.axis).ok_or("its axes do not fit its operand")?;
        } else if axes.contains(&p.axis) {
            return Err("it removes the axis of the samples".into());
        } else {
            p.axis -= axes.iter().filter(|a| **a < p.axis).count();
        }
        self.all(p)
    }

    fn flatten(&mut self) -> Found {
        let (p, shape) = (self.need(0)?, self.shape(0)?);
        let (axis, rank) = (self.int("axis", 1), shape.len() as i64);
        let split = (if axis < 0 { axis + rank } else { axis }) as usize;
        let product = |d: &[Dim]| d.iter().fold(Dim::from(1), |p, d| &p * d);
        let (to, first, end) = if p.axis < split { (0, 0, split) } else { (1, split, shape.len()) };
        let outer = &product(&shape[first..p.axis]) * &p.outer;
        let inner = &p.inner * &product(&shape[p.axis + 1..end]);
        self.all(Place { axis: to, outer, inner })
    }

    fn concat(&mut self) -> Found {
        let axis = self.axis_attr(0)?;
        let all: Vec<usize> = (0..self.operands.len()).collect();
        let mut found: Option<Place> = None;
        for &i in &all {
            let Some(p) = self.place(i) else { continue };
            if found.as_ref().is_some_and(|q| q != p) {
                return Err("its operands have the samples in different places".into());
            }
            found = Some(p.clone());
        }
        let p = found.ok_or("no operand carries samples")?;
        if p.axis == axis {
            return Err("it joins along the samples".into());
        }
        for i in all {
            if self.place(i).is_none() {
                self.meet(i, p.axis, &p, false)?;
            }
        }
        self.all(p)
    }

    fn slice(&mut self) -> Found {
        self.only(&[0])?;
        let (p, rank) = (self.need(0)?, self.rank(0)? as i64);
        let count = |list: &Option<Vec<i64>>| list.as_ref().map_or(0, Vec::len);
        let axes = match self.listed("axes", 3)? {
            Some(axes) => axes,
            None => (0..count(&self.listed("starts", 1)?).max(count(&self.listed("ends", 2)?)) as i64).collect(),
        };
        let Some(at) = axes.iter().position(|a| (if *a < 0 { a + rank } else { *a }) == p.axis as i64) else {
            return self.all(p);
        };
        let (starts, ends, steps) = (self.listed("starts", 1)?, self.listed("ends", 2)?, self.listed("steps", 4)?);
        let one = |list: &Option<Vec<i64>>, default: i64| list.as_ref().and_then(|l| l.get(at).copied()).unwrap_or(default);
        let extent = p.extent(&Dim::from(self.a.before)).known().ok_or("it slices the samples")?;
        let (start, end) = (one(&starts, 0), one(&ends, 0));
        if start != 0 || one(&steps, 1) != 1 || end < extent {
            return Err("it takes some of the samples".into());
        }
        if end < i64::from(i32::MAX) {
            if self.operands.len() < 3 {
                return Err("it slices the samples, in the form before opset 10".into());
            }
            let ends = ends.unwrap_or_default();
            let entries = ends.iter().enumerate().map(|(i, e)| Entry::Is(if i == at { i64::MAX } else { *e })).collect();
            self.edits.push(Edit::Vector { operand: 2, entries });
        }
        self.all(p)
    }

    fn pad(&mut self) -> Found {
        self.only(&[0])?;
        let (p, rank) = (self.need(0)?, self.rank(0)?);
        if let Ok(Some(pads)) = self.listed("pads", 1) {
            let at = match self.listed("axes", 3)? {
                Some(axes) => axes.iter().position(|a| (if *a < 0 { a + rank as i64 } else { *a }) == p.axis as i64),
                None => Some(p.axis),
            };
            let half = pads.len() / 2;
            if at.is_some_and(|i| pads.get(i) != Some(&0) || pads.get(i + half) != Some(&0)) {
                return Err("it pads the samples".into());
            }
        }
        self.all(p)
    }

    fn gather(&mut self) -> Found {
        let axis = self.axis_attr(0)?;
        let width = self.rank(1)?;
        match (self.place(0).cloned(), self.place(1).cloned()) {
            (None, Some(q)) => self.all(q.at(axis + q.axis)),
            (Some(p), None) if p.axis < axis => self.all(p),
            (Some(p), None) if p.axis > axis => self.all(p.at(p.axis + width - 1)),
            (Some(p), None) => {
                let q = self.own_indices(&p, None)?;
                self.all(q.at(axis + q.axis))
            }
            _ => Err("its indices depend on the samples and so does what they index".into()),
        }
    }

    /// Indices into the one sample there was, the same for every sample: each gets its own. Returns where the indices then carry samples.
    /// `coordinate`: which element of the last axis of the indices names the sample, and how many there are.
    fn own_indices(&mut self, p: &Place, coordinate: Option<(usize, usize)>) -> Result<Place, Refusal> {
        let shape = self.shape(1)?;
        let inner = p.inner.known().filter(|_| p.outer.is_one()).ok_or("it indexes the samples inside an axis")?;
        if self.a.before != 1 {
            return Err("it indexes the samples".into());
        }
        let picked = |k: usize| coordinate.is_none_or(|(c, m)| k % m == c);
        let values = self.integers(1).and_then(Integers::numbers);
        let from_front = values.is_some_and(|v| v.iter().enumerate().all(|(k, i)| !picked(k) || (0..inner).contains(i)));
        let axes = if coordinate.is_some() { shape.len() - 1 } else { shape.len() };
        let free: Vec<usize> = (0..axes).filter(|i| shape[*i].is_one()).collect();
        self.answers = free.len();
        let axis = *free.get(self.answer).ok_or("it takes one sample")?;
        self.edits.push(Edit::OwnIndices { operand: 1, axis, coordinate, step: inner, from_front });
        Ok(Place::pure(axis))
    }

    fn elements_along(&mut self, name: &str) -> Found {
        let axis = self.axis_attr(0)?;
        let all: Vec<usize> = if name == "GatherElements" { vec![0, 1] } else { vec![0, 1, 2] };
        let mut found: Option<Place> = None;
        for &i in &all {
            let Some(p) = self.place(i) else { continue };
            if p.axis == axis || found.as_ref().is_some_and(|q| q != p) {
                return Err("it indexes along the samples, or its operands have them in different places".into());
            }
            found = Some(p.clone());
        }
        let p = found.ok_or("no operand carries samples")?;
        for i in all {
            if self.place(i).is_none() {
                self.meet(i, p.axis, &p, false)?;
            }
        }
        self.all(p)
    }

    fn gather_nd(&mut self) -> Found {
        let shared = self.int("batch_dims", 0) as usize;
        let indices = self.shape(1)?;
        let (last, m) =
            (indices.len() - 1, indices.last().and_then(Dim::known).ok_or("its indices' length is unknown")? as usize);
        match (self.place(0).cloned(), self.place(1).cloned()) {
            (None, Some(q)) if q.axis >= shared && q.axis < last => self.all(q),
            (p, q) if p.as_ref().or(q.as_ref()).is_some_and(|p| p.axis < shared) => {
                let first = p.clone().or(q.clone()).ok_or("no operand carries samples")?;
                if p.is_some() && q.is_some() && p != q {
                    return Err("its operands have the samples in different places".into());
                }
                for i in [0, 1] {
                    if self.place(i).is_none() {
                        self.meet(i, first.axis, &first, false)?;
                    }
                }
                self.all(first)
            }
            (Some(p), None) if p.axis >= shared + m => self.all(p.at(last + p.axis - shared - m)),
            (Some(p), None) => {
                let q = self.own_indices(&p, Some((p.axis - shared, m)))?;
                self.all(q)
            }
            _ => Err("its indices depend on the samples and so does what they index".into()),
        }
    }

    fn one_hot(&mut self) -> Found {
        self.only(&[0])?;
        let (p, rank) = (self.need(0)?, self.rank(0)? as i64 + 1);
        let axis = self.int("axis", -1);
        let axis = (if axis < 0 { axis + rank } else { axis }) as usize;
        self.all(p.at(p.axis + (p.axis >= axis) as usize))
    }

    fn rotary(&mut self) -> Found {
        // Position ids: operand 3 of the standard operator, 1 of ONNX Runtime's.
        let ids = if self.a.g.op(self.id).is_some_and(|op| op.domain.is_empty()) { 3 } else { 1 };
        self.only(&[0, 1, 2, 3])?;
        let p = self.need(0)?;
        if p != Place::pure(0) {
            return Err("the samples do not lie along axis 0".into());
        }
        let tables = if ids == 3 && self.operands.get(3).copied().flatten().is_none() { vec![1, 2] } else { vec![ids] };
        for i in tables {
            if self.operands.get(i).copied().flatten().is_some() && self.place(i).is_none() && self.rank(i)? >= 2 {
                self.meet(i, 0, &p, false)?;
            }
        }
        self.all(p)
    }

    // ---- operators that read a shape ------------------------------------------------------------------------------------

    /// Operators one of whose operands is a shape, which may be computed from the batch.
    fn by_shape(&mut self, name: &str) -> Result<Option<Outcome>, Refusal> {
        Ok(Some(match name {
            "Reshape" => self.reshape()?,
            "Expand" => self.expand()?,
            "Tile" => self.tile()?,
            "ConstantOfShape" => {
                let p = self.named_by(0, |_| true)?;
                self.all(p)?
            }
            "Resize" | "Upsample" => self.resize()?,
            _ => return Ok(None),
        }))
    }

    /// The place of samples in a result whose shape operand `operand` names: the one entry that depends on the batch.
    fn named_by(&self, operand: usize, fits: impl Fn(usize) -> bool) -> Result<Place, Refusal> {
        let values = self.integers(operand).and_then(Integers::values).ok_or("its shape is computed in an unknown way")?;
        let symbol = self.a.batch.symbols().next().unwrap_or_default().to_string();
        let mut at = values.iter().enumerate().filter(|(_, d)| d.symbols().any(|s| s == symbol));
        let ((axis, d), None) = (at.next().ok_or("its shape does not depend on the batch")?, at.next()) else {
            return Err("its shape names the batch twice".into());
        };
        let inner = d.div_exact(&self.a.batch).filter(|_| fits(axis)).ok_or("its shape depends on the batch oddly")?;
        Ok(Place { axis, outer: Dim::from(1), inner })
    }

    fn reshape(&mut self) -> Found {
        let Some(p) = self.place(0).cloned() else {
            return Err("it gives the batch's extent to values that are the same for every sample".into());
        };
        let (from, to) = (self.shape(0)?, self.result_shape()?);
        if from.iter().chain(&to).any(is_unnamed) {
            return Err("the shape it gives is not known".into());
        }
        let found = place::reshaped(&from, &p, &to, self.a.before);
        self.answers = found.len();
        let q = found.get(self.answer).cloned().ok_or_else(|| {
            let dims = |s: &[Dim]| s.iter().map(Dim::to_string).collect::<Vec<_>>().join(",");
            format!("it tears the samples apart: [{}] to [{}]", dims(&from), dims(&to))
        })?;
        let mut new_from = from;
        new_from[p.axis] = p.extent(&self.a.batch);
        self.retarget(1, &to, &q, &new_from)?;
        self.all(q)
    }

    /// Rewrites the target of a `Reshape` where it does not give the samples their place.
    fn retarget(&mut self, operand: usize, to: &[Dim], q: &Place, from: &[Dim]) -> Result<(), Refusal> {
        let copies = self.int("allowzero", 0) == 0;
        let want = |k: usize| if k == q.axis { q.extent(&self.a.batch) } else { to[k].clone() };
        let entries = self.integers(operand).and_then(Integers::values).map(<[Dim]>::to_vec);
        if entries.as_ref().is_some_and(|e| e.len() != to.len()) {
            return Err("its target does not fit its result".into());
        }
        let minus = Dim::from(-1);
        if let Some(entries) = &entries {
            let zero = |e: &Dim| copies && e.known() == Some(0);
            let right =
                |k: usize, e: &Dim| *e == want(k) || *e == minus || (zero(e) && from.get(k).is_some_and(|d| *d == want(k)));
            if entries.iter().enumerate().all(|(k, e)| right(k, e)) {
                return Ok(());
            }
        }
        // −1 for the samples where every other extent is a number or copied.
        let copied = |k: usize| copies && from.get(k).is_some_and(|d| *d == to[k]);
        let mut rest = (0..to.len()).filter(|k| *k != q.axis);
        let literal = rest.all(|k| to[k].known().is_some_and(|n| n != 0) || copied(k));
        let mut out = Vec::with_capacity(to.len());
        for k in 0..to.len() {
            let entry = entries.as_ref().map(|e| e[k].clone());
            out.push(match (k == q.axis, to[k].known()) {
                (true, _) if literal => Entry::Rest(to[k].known().unwrap_or(0) / self.a.before),
                (true, Some(n)) => Entry::Batch(n / self.a.before),
                (true, None) if entry.as_ref().is_none_or(|e| *e == minus || e.known() == Some(0)) => {
                    return Err("its target leaves the samples' extent open".into());
                }
                (true, None) => Entry::OldTimes(k),
                (false, Some(n)) => Entry::Is(n),
                (false, None) if copied(k) => Entry::Is(0),
                (false, None) => Entry::Old(k),
            });
        }
        self.edits.push(Edit::Vector { operand, entries: out });
        Ok(())
    }

    fn expand(&mut self) -> Found {
        let to = self.result_shape()?;
        let Some(p) = self.place(0).cloned() else {
            let (own, rank) = (self.shape(0)?, to.len());
            let missing = rank - own.len().min(rank);
            let p = self.named_by(1, |axis| axis < missing || own[axis - missing].is_one())?;
            return self.all(p);
        };
        let width = self.shape(1)?.first().and_then(Dim::known).ok_or("the length of its target is unknown")? as usize;
        let q = p.at(p.axis + to.len() - self.rank(0)?.min(to.len()));
        // The target's entry there has to be 1, or the new extent.
        if let Some(k) = (q.axis + width).checked_sub(to.len()) {
            let entries = self.integers(1).and_then(Integers::values).map(<[Dim]>::to_vec);
            let right = entries
                .as_ref()
                .map_or(self.a.before == 1 && q.is_pure(), |e| e[k].is_one() || e[k] == q.extent(&self.a.batch));
            if !right {
                let known = |i: usize| entries.as_ref().and_then(|e| e[i].known());
                let entry = |i: usize| if i == k { Entry::Is(1) } else { known(i).map_or(Entry::Old(i), Entry::Is) };
                self.edits.push(Edit::Vector { operand: 1, entries: (0..width).map(entry).collect() });
            }
        }
        self.all(q)
    }

    fn tile(&mut self) -> Found {
        let Some(p) = self.place(0).cloned() else {
            let own = self.shape(0)?;
            let p = self.named_by(1, |axis| own.get(axis).is_some_and(Dim::is_one))?;
            return self.all(p);
        };
        let repeats = self.integers(1).and_then(Integers::values).ok_or("its repeats are computed in the graph")?;
        if repeats.get(p.axis).is_some_and(Dim::is_one) { self.all(p) } else { Err("it repeats the samples".into()) }
    }

    fn resize(&mut self) -> Found {
        self.only(&[0])?;
        let (p, rank) = (self.need(0)?, self.rank(0)?);
        let to = self.result_shape()?;
        if to.get(p.axis) != self.shape(0)?.get(p.axis) {
            return Err("it resizes over the samples".into());
        }
        // All axes' sizes are given: the samples' must follow.
        if self.operands.get(3).copied().flatten().is_some()
            && self.a.g.op(self.id).is_none_or(|o| o.attrs.ints("axes").is_none())
        {
            let entries = self.integers(3).and_then(Integers::values).map(<[Dim]>::to_vec);
            let right = entries.as_ref().is_some_and(|e| e.get(p.axis) == Some(&p.extent(&self.a.batch)));
            if !right {
                let n = to[p.axis].known().ok_or("its sizes are computed in the graph")?;
                let known = |i: usize| entries.as_ref().and_then(|e| e.get(i)?.known());
                let entry = |i: usize| {
                    if i == p.axis { Entry::Batch(n / self.a.before) } else { known(i).map_or(Entry::Old(i), Entry::Is) }
                };
                let entries = (0..rank).map(entry).collect();
                self.edits.push(Edit::Vector { operand: 3, entries });
            }
        }
        self.all(p)
    }
}

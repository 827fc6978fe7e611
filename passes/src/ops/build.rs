//! Builds nodes with their types inferred by the operators' own rules.

use crate::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType, ValueId, ValueType};
use crate::onnx::schema;
use crate::ops::{self, TypeError};
use crate::target::{self, Target};
use std::collections::HashMap;

mod filled;

/// A node that could not be built, because its operands do not fit or their types are unknown.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}{error}", of_part(op))]
pub struct BuildError {
    /// Operator.
    pub op: String,
    /// Name prefix, which tells for which node of the source it was built.
    pub prefix: String,
    /// What the operator's rule reports.
    #[source]
    pub error: TypeError,
}

/// What operator the error is about, unless it is about a value of the source.
fn of_part(op: &str) -> String {
    if op == VALUE { String::new() } else { format!("its part {op}: ") }
}

/// Stands for the operator where a value of the source does not fit.
const VALUE: &str = "value";

/// Result of building one value.
pub type Built = Result<ValueId, BuildError>;

/// Appends nodes to a graph. Names are `<prefix>/<Operator>`; constants are shared within one builder.
pub struct Builder<'g> {
    /// The graph that grows.
    pub graph: &'g mut Graph,
    /// Prefix of the new names.
    pub prefix: String,
    /// The machine whose costs choose among formulations.
    pub target: &'static Target,
    /// May the cotangent at hand be infinite? Then [`Builder::keep`] does not multiply by a mask.
    pub steep: bool,
    constants: HashMap<(DType, Vec<i64>, Vec<u8>), ValueId>,
    ones: HashMap<(DType, Dim), ValueId>,
    zeros: HashMap<(DType, Vec<Dim>), ValueId>,
}

impl<'g> Builder<'g> {
    /// A builder on a graph, for the CPU.
    pub fn new(graph: &'g mut Graph, prefix: &str) -> Builder<'g> {
        Builder::on(graph, prefix, &target::CPU)
    }

    /// A builder on a graph, for a machine.
    pub fn on(graph: &'g mut Graph, prefix: &str, target: &'static Target) -> Builder<'g> {
        Builder {
            graph,
            prefix: prefix.to_string(),
            target,
            steep: false,
            constants: HashMap::new(),
            ones: HashMap::new(),
            zeros: HashMap::new(),
        }
    }

    /// The type of a value.
    ///
    /// # Errors
    /// When its element type or shape is not known.
    pub fn ty(&self, v: ValueId) -> Result<TensorType, BuildError> {
        self.graph.tensor_type(v).ok_or_else(|| self.error(VALUE, TypeError(self.graph.untyped(v))))
    }

    /// The extent of a batch, or what is assumed for it where it is symbolic.
    pub fn batch(&self, extent: &Dim) -> i64 {
        extent.known().or(self.graph.assumed_batch).unwrap_or(self.target.batch)
    }

    /// An extent that has to be a number.
    ///
    /// # Errors
    /// When it is symbolic.
    pub fn number(&self, extent: &Dim) -> Result<i64, BuildError> {
        extent.known().ok_or_else(|| self.error("constant", TypeError(format!("the extent {extent} has to be a number"))))
    }

    /// Extents that have to be numbers.
    ///
    /// # Errors
    /// When one is symbolic.
    pub fn numbers(&self, shape: &[Dim]) -> Result<Vec<i64>, BuildError> {
        shape.iter().map(|d| self.number(d)).collect()
    }

    /// The error for an operator that cannot be built here.
    pub fn error(&self, op: &str, error: TypeError) -> BuildError {
        BuildError { op: op.to_string(), prefix: self.prefix.clone(), error }
    }

    /// Adds an operator with one or more results.
    pub fn node(&mut self, op: Op, operands: &[Option<ValueId>]) -> Result<Vec<ValueId>, BuildError> {
        let types = ops::result_types(&op, operands, self.graph);
        let types = types.unwrap_or_else(|| Err(TypeError("the types of its results are not known".into())));
        let given = |v: &Option<ValueId>| v.and_then(|v| self.graph.value(v).ty.dtype);
        let misfit = schema::misfit(&op, operands.iter().map(given)).map(|what| TypeError(format!("it {what}")));
        let results = misfit.map_or(types, Err).map_err(|e| self.error(&op.full_name(), e))?;
        Ok(self.node_of(op, operands, results))
    }

    /// Adds an operator whose results have these types.
    pub(crate) fn node_of(&mut self, op: Op, operands: &[Option<ValueId>], results: Vec<TensorType>) -> Vec<ValueId> {
        let stem = if self.prefix.is_empty() { op.name.clone() } else { format!("{}/{}", self.prefix, op.name) };
        let node = self.graph.add_op("", op, operands);
        let mut out = Vec::with_capacity(results.len());
        for (slot, ty) in results.into_iter().enumerate() {
            let name = if slot == 0 { stem.clone() } else { format!("{stem}.{slot}") };
            out.push(self.graph.push_result(node, &name, ty.into()));
        }
        let name = self.graph.name(out[0]).to_string();
        self.graph.node_mut(node).name = name;
        out
    }

    /// Adds a standard operator without attributes and takes its first result.
    pub fn op(&mut self, name: &str, operands: &[ValueId]) -> Built {
        self.op_with(name, Attrs::new(), operands)
    }

    /// Adds a standard operator and takes its first result.
    pub fn op_with(&mut self, name: &str, attrs: Attrs, operands: &[ValueId]) -> Built {
        let operands: Vec<_> = operands.iter().map(|v| Some(*v)).collect();
        Ok(self.node(Op::new(name, attrs), &operands)?[0])
    }

    // ---- constants ------------------------------------------------------------------------------------------------

    /// A constant, shared with equal ones of this builder.
    pub fn constant(&mut self, stem: &str, tensor: Tensor) -> ValueId {
        let bytes = tensor.bytes().map(|b| b.into_owned()).unwrap_or_default();
        let key = (tensor.dtype(), tensor.dims().to_vec(), bytes);
        if let Some(v) = self.constants.get(&key) {
            return *v;
        }
        let v = self.graph.add_initializer(stem, tensor, false);
        self.constants.insert(key, v);
        v
    }

    /// An int64 vector.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        let text: Vec<_> = values.iter().map(i64::to_string).collect();
        self.constant(&format!("const/i64/[{}]", text.join(",")), Tensor::i64s(&[values.len() as i64], values))
    }

    /// An int64 scalar.
    pub fn int(&mut self, value: i64) -> ValueId {
        self.constant(&format!("const/i64/{value}"), Tensor::i64s(&[], &[value]))
    }

    /// A float scalar (rank 0) of a float type.
    pub fn scalar(&mut self, dtype: DType, value: f64) -> ValueId {
        self.constant(&format!("const/{dtype}/{value}"), Tensor::floats(dtype, &[], &[value]))
    }

    /// A number as a scalar of a value's type.
    pub fn scalar_like(&mut self, like: ValueId, value: f64) -> Built {
        let dtype = self.ty(like)?.dtype;
        Ok(self.scalar(dtype, value))
    }

    /// States the type of a value where its operator's rule cannot tell it.
    pub fn state(&mut self, v: ValueId, ty: impl Into<ValueType>) -> ValueId {
        self.graph.set_type(v, ty.into());
        v
    }

    // ---- arithmetic -----------------------------------------------------------------------------------------------

    /// a + b.
    pub fn add(&mut self, a: ValueId, b: ValueId) -> Built {
        self.op("Add", &[a, b])
    }
    /// a − b.
    pub fn sub(&mut self, a: ValueId, b: ValueId) -> Built {
        self.op("Sub", &[a, b])
    }
    /// a ⊙ b.
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> Built {
        self.op("Mul", &[a, b])
    }
    /// a ⊘ b.
    pub fn div(&mut self, a: ValueId, b: ValueId) -> Built {
        self.op("Div", &[a, b])
    }
    /// −a.
    pub fn neg(&mut self, a: ValueId) -> Built {
        self.op("Neg", &[a])
    }
    /// √a.
    pub fn sqrt(&mut self, a: ValueId) -> Built {
        self.op("Sqrt", &[a])
    }
    /// a · c for a number c.
    pub fn scale(&mut self, a: ValueId, c: f64) -> Built {
        if c == 1.0 {
            return Ok(a);
        }
        let c = self.scalar_like(a, c)?;
        self.mul(a, c)
    }
    /// a + c for a number c.
    pub fn shift(&mut self, a: ValueId, c: f64) -> Built {
        if c == 0.0 {
            return Ok(a);
        }
        let c = self.scalar_like(a, c)?;
        self.add(a, c)
    }
    /// c − a for a number c.
    pub fn from_number_sub(&mut self, c: f64, a: ValueId) -> Built {
        let c = self.scalar_like(a, c)?;
        self.sub(c, a)
    }
    /// c / a for a number c.
    pub fn from_number_div(&mut self, c: f64, a: ValueId) -> Built {
        let c = self.scalar_like(a, c)?;
        self.div(c, a)
    }
    /// Matrix product with ONNX's batching.
    pub fn matmul(&mut self, a: ValueId, b: ValueId) -> Built {
        self.op("MatMul", &[a, b])
    }
    /// `condition ? a : b`.
    pub fn select(&mut self, condition: ValueId, a: ValueId, b: ValueId) -> Built {
        self.op("Where", &[condition, a, b])
    }
    /// Sum of one or more values of one type.
    pub fn sum(&mut self, terms: &[ValueId]) -> Built {
        match terms {
            [one] => Ok(*one),
            [a, b] => self.add(*a, *b),
            many => self.op("Sum", many),
        }
    }

    // ---- shapes ---------------------------------------------------------------------------------------------------

    /// Sum over axes (none: the value itself).
    pub fn reduce_sum(&mut self, a: ValueId, axes: &[i64], keep: bool) -> Built {
        self.reduce("ReduceSum", a, axes, keep)
    }

    /// One of the `Reduce…` operators over the given axes (none: the value itself).
    pub fn reduce(&mut self, op: &str, a: ValueId, axes: &[i64], keep: bool) -> Built {
        if axes.is_empty() {
            return Ok(a);
        }
        let attrs = Attrs::new().with("keepdims", keep as i64);
        // The axes became an operand in opset 13 for ReduceSum and in 18 for the others.
        if self.opset() < if op == "ReduceSum" { 13 } else { 18 } {
            return self.op_with(op, attrs.with("axes", axes), &[a]);
        }
        let axes = self.ints(axes);
        self.op_with(op, attrs, &[a, axes])
    }

    /// Sum of all elements, a scalar.
    pub fn reduce_all(&mut self, op: &str, a: ValueId) -> Built {
        self.op_with(op, Attrs::new().with("keepdims", 0), &[a])
    }

    /// Permutes axes. The identity permutation adds no node, nor does undoing an earlier permutation.
    pub fn transpose(&mut self, a: ValueId, perm: &[i64]) -> Built {
        if perm.iter().enumerate().all(|(i, p)| i as i64 == *p) {
            return Ok(a);
        }
        if let Some((from, before)) = self.transposed(a)
            && before.len() == perm.len()
            && perm.iter().enumerate().all(|(i, p)| before.get(*p as usize) == Some(&(i as i64)))
        {
            return Ok(from);
        }
        self.op_with("Transpose", Attrs::new().with("perm", perm.to_vec()), &[a])
    }

    /// The operand and the permutation of the `Transpose` that makes a value.
    pub fn transposed(&self, v: ValueId) -> Option<(ValueId, Vec<i64>)> {
        let op = self.graph.op(v.node).filter(|op| op.is("Transpose"))?;
        let from = self.graph.operand(v.node, 0)?;
        let rank = self.graph.tensor_type(from)?.rank() as i64;
        Some((from, op.attrs.ints("perm").map_or_else(|| (0..rank).rev().collect(), <[i64]>::to_vec)))
    }

    /// The matrix whose transpose a value is.
    pub fn matrix_behind(&self, v: ValueId) -> Option<ValueId> {
        self.transposed(v).filter(|(_, perm)| perm == &[1, 0]).map(|(from, _)| from)
    }

    /// Swaps the last two axes.
    pub fn transpose_last(&mut self, a: ValueId) -> Built {
        let rank = self.ty(a)?.rank() as i64;
        let mut perm: Vec<i64> = (0..rank).collect();
        perm.swap(rank as usize - 1, rank as usize - 2);
        self.transpose(a, &perm)
    }

    /// Reshapes to the shape of `like`, which is read at run time only if two or more of its dimensions are symbolic.
    pub fn reshape_like(&mut self, a: ValueId, like: ValueId) -> Built {
        let (from, to) = (self.ty(a)?, self.ty(like)?);
        if from.shape == to.shape {
            return Ok(a);
        }
        if let Some(target) = reshape_target(&to.shape) {
            return self.reshape(a, &target, &to.shape);
        }
        let shape = self.op("Shape", &[like])?;
        self.reshape_dynamic(a, shape, &to.shape)
    }

    /// Reshapes to literal dimensions (at most one −1); `shape` is the result's symbolic shape.
    pub fn reshape(&mut self, a: ValueId, target: &[i64], shape: &[Dim]) -> Built {
        if self.ty(a)?.shape == shape {
            return Ok(a);
        }
        let target = self.ints(target);
        self.reshape_dynamic(a, target, shape)
    }

    /// Parts of these sizes along an axis.
    pub fn split(&mut self, v: ValueId, axis: i64, sizes: &[i64]) -> Result<Vec<ValueId>, BuildError> {
        let attrs = Attrs::new().with("axis", axis);
        // The sizes became an operand in opset 13.
        if self.opset() < 13 {
            return self.node(Op::new("Split", attrs.with("split", sizes.to_vec())), &[Some(v)]);
        }
        let sizes = self.ints(sizes);
        self.node(Op::new("Split", attrs), &[Some(v), Some(sizes)])
    }

    /// Reshapes to known extents.
    pub fn reshape_to(&mut self, a: ValueId, dims: &[i64]) -> Built {
        self.reshape(a, dims, &dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())
    }

    /// The same numbers, known to a runtime only when `ct` is: it does not fold what is made of them into constants, nor takes them for
    /// equal to what the forward pass made. Each zero of the shape copies an extent; a size times zero is zero.
    pub fn late(&mut self, v: ValueId, ct: ValueId) -> Built {
        let size = self.op("Size", &[ct])?;
        self.late_by(v, size)
    }

    /// The same, where the cotangent's size is there already.
    pub fn late_by(&mut self, v: ValueId, size: ValueId) -> Built {
        let ty = self.ty(v)?;
        let zeros = self.ints(&vec![0; ty.rank()]);
        let shape = self.mul(size, zeros)?;
        self.reshape_dynamic(v, shape, &ty.shape)
    }

    /// A weight made of integers, made again when `ct` is known: the forward pass need not keep its floats until then. Others as they are.
    pub fn weight_again(&mut self, w: ValueId, ct: ValueId) -> Built {
        let g = &self.graph;
        let large = || g.tensor_type(w).and_then(|t| t.elements().known()).is_some_and(|n| n > 1 << 12);
        let constant = || g.reads(w.node).all(|v| g.constant(v).is_some());
        if !g.is_op(w.node, "DequantizeLinear") || !large() || !constant() {
            return Ok(w);
        }
        let (op, mut operands) = (g.op(w.node).cloned(), g.operands(w.node).to_vec());
        let (Some(op), Some(Some(scale))) = (op, operands.get(1).copied()) else { return Ok(w) };
        operands[1] = Some(self.late(scale, ct)?);
        Ok(self.node(Op { source: None, ..op }, &operands)?[0])
    }

    /// Reshapes to a shape computed in the graph; `shape` is the result's symbolic shape.
    pub fn reshape_dynamic(&mut self, a: ValueId, target: ValueId, shape: &[Dim]) -> Built {
        let dtype = self.ty(a)?.dtype;
        let v = self.op_with("Reshape", Attrs::new(), &[a, target])?;
        Ok(self.state(v, TensorType::new(dtype, shape.to_vec())))
    }

    /// Broadcasts to the shape of `like`, which is read at run time only if an extent is symbolic.
    pub fn expand_like(&mut self, a: ValueId, like: ValueId) -> Built {
        let to = self.ty(like)?;
        if self.ty(a)?.shape == to.shape {
            return Ok(a);
        }
        let shape = match to.known_dims() {
            Some(dims) => self.ints(&dims),
            None => self.op("Shape", &[like])?,
        };
        let dtype = self.ty(a)?.dtype;
        let v = self.op("Expand", &[a, shape])?;
        Ok(self.state(v, TensorType::new(dtype, to.shape)))
    }

    /// Inserts axes of extent 1 at the given places of the result.
    pub fn unsqueeze(&mut self, a: ValueId, axes: &[i64]) -> Built {
        self.with_axes("Unsqueeze", a, axes)
    }

    /// Removes axes of extent 1.
    pub fn squeeze(&mut self, a: ValueId, axes: &[i64]) -> Built {
        self.with_axes("Squeeze", a, axes)
    }

    fn with_axes(&mut self, op: &str, a: ValueId, axes: &[i64]) -> Built {
        if axes.is_empty() {
            return Ok(a);
        }
        if self.opset() < 13 {
            return self.op_with(op, Attrs::new().with("axes", axes), &[a]);
        }
        let axes = self.ints(axes);
        self.op(op, &[a, axes])
    }

    /// Joins along an axis.
    pub fn concat(&mut self, parts: &[ValueId], axis: i64) -> Built {
        match parts {
            [one] => Ok(*one),
            many => self.op_with("Concat", Attrs::new().with("axis", axis), many),
        }
    }

    /// `a[start..end]` along one axis.
    pub fn slice(&mut self, a: ValueId, axis: i64, start: i64, end: i64) -> Built {
        self.slices(a, &[axis], &[start], &[end])
    }

    /// `a[starts..ends]` along several axes.
    pub fn slices(&mut self, a: ValueId, axes: &[i64], starts: &[i64], ends: &[i64]) -> Built {
        if self.opset() < 10 {
            let attrs = Attrs::new().with("axes", axes).with("ends", ends).with("starts", starts);
            return self.op_with("Slice", attrs, &[a]);
        }
        self.steps(a, axes, starts, ends, &vec![1; axes.len()])
    }

    /// `a[starts : ends : steps]` along several axes, from opset 10 on.
    pub fn steps(&mut self, a: ValueId, axes: &[i64], starts: &[i64], ends: &[i64], steps: &[i64]) -> Built {
        let mut operands = vec![a, self.ints(starts), self.ints(ends), self.ints(axes)];
        if steps.iter().any(|step| *step != 1) {
            operands.push(self.ints(steps));
        }
        self.op("Slice", &operands)
    }

    /// The version of the standard operator set that nodes are built for.
    pub fn opset(&self) -> i64 {
        self.graph.opsets.get("").copied().unwrap_or(18)
    }

    /// Casts to an element type; adds no node if the value has it already.
    pub fn cast(&mut self, a: ValueId, to: DType) -> Built {
        if self.graph.value(a).ty.dtype == Some(to) {
            return Ok(a);
        }
        self.op_with("Cast", Attrs::new().with("to", to.onnx() as i64), &[a])
    }

    /// The shape as an int64 vector: a constant where all dimensions are known.
    pub fn shape_of(&mut self, a: ValueId) -> Built {
        match self.ty(a)?.known_dims() {
            Some(dims) => Ok(self.ints(&dims)),
            None => self.op("Shape", &[a]),
        }
    }

    /// A graph input and its axis with the only symbolic extent among some axes, and the product of the others. A node that read the
    /// extent off an activation would keep that in memory until it runs.
    fn extent_of_input(&self, shape: &[Dim], axes: &[usize]) -> Option<(ValueId, usize, i64)> {
        let mut symbolic = axes.iter().map(|i| &shape[*i]).filter(|d| d.known().is_none());
        let (only, None) = (symbolic.next()?, symbolic.next()) else { return None };
        let rest = axes.iter().filter_map(|i| shape[*i].known()).product();
        self.graph.required_inputs().find_map(|v| {
            let axis = self.graph.value(v).ty.shape.as_ref()?.iter().position(|d| d == only)?;
            Some((v, axis, rest))
        })
    }

    /// The number of elements over some axes as a float scalar: a constant where they are known.
    pub fn extent(&mut self, a: ValueId, axes: &[usize], dtype: DType) -> Built {
        let ty = self.ty(a)?;
        let product = axes.iter().fold(Dim::from(1), |p, i| &p * &ty.shape[*i]);
        if let Some(n) = product.known() {
            return Ok(self.scalar(dtype, n as f64));
        }
        if let Some((input, axis, rest)) = self.extent_of_input(&ty.shape, axes) {
            let extent = self.dim_of(input, axis)?;
            let extent = self.cast(extent, dtype)?;
            let extent = self.squeeze(extent, &[0])?;
            return self.scale(extent, rest as f64);
        }
        let shape = self.op("Shape", &[a])?;
        let which = self.ints(&axes.iter().map(|a| *a as i64).collect::<Vec<_>>());
        let dims = self.op_with("Gather", Attrs::new().with("axis", 0), &[shape, which])?;
        let dims = self.cast(dims, dtype)?;
        self.op_with("ReduceProd", Attrs::new().with("keepdims", 0), &[dims])
    }

    // ---- masks and extents ------------------------------------------------------------------------------------------

    /// 1 where a comparison with a number holds, else 0, in `a`'s own type. A product with such a mask costs far less than
    /// `Where` on the CPU and about the same on CUDA.
    pub fn compare(&mut self, op: &str, a: ValueId, c: f64) -> Built {
        let dtype = self.ty(a)?.dtype;
        let c = self.scalar(dtype, c);
        let holds = self.op(op, &[a, c])?;
        self.cast(holds, dtype)
    }

    /// `a` where a condition holds (or does not), else 0.
    pub fn keep(&mut self, a: ValueId, condition: ValueId, holds: bool) -> Built {
        let dtype = self.ty(a)?.dtype;
        if self.steep {
            let zero = self.scalar(dtype, 0.0);
            let (yes, no) = if holds { (a, zero) } else { (zero, a) };
            return self.select(condition, yes, no);
        }
        let mut mask = self.cast(condition, dtype)?;
        if !holds {
            mask = self.from_number_sub(1.0, mask)?;
        }
        self.mul(a, mask)
    }

    /// Does low < a < high hold? A missing bound always holds, but not both may be missing.
    pub fn between(&mut self, a: ValueId, low: Option<ValueId>, high: Option<ValueId>) -> Built {
        let above = low.map(|low| self.op("Greater", &[a, low])).transpose()?;
        let below = high.map(|high| self.op("Less", &[a, high])).transpose()?;
        match (above, below) {
            (Some(above), Some(below)) => self.op("And", &[above, below]),
            (Some(one), None) | (None, Some(one)) => Ok(one),
            (None, None) => Err(self.error("between", TypeError("both bounds are missing".into()))),
        }
    }

    /// `one` where a mask is 1, `zero` where it is 0.
    pub fn two_valued(&mut self, mask: ValueId, one: f64, zero: f64) -> Built {
        if one == 1.0 && (0.0..=1.0).contains(&zero) {
            let zero = self.scalar_like(mask, zero)?;
            return self.op("Max", &[mask, zero]);
        }
        let scaled = self.scale(mask, one - zero)?;
        self.shift(scaled, zero)
    }
}

/// Literal dimensions for a `Reshape` to a shape, with −1 for a symbolic one. `None` if two are symbolic, or one is 0, which
/// `Reshape` would read as "copy".
pub fn reshape_target(shape: &[Dim]) -> Option<Vec<i64>> {
    let mut symbolic = 0;
    let target: Vec<i64> = shape
        .iter()
        .map(|d| {
            d.known().unwrap_or_else(|| {
                symbolic += 1;
                -1
            })
        })
        .collect();
    (symbolic <= 1 && !target.contains(&0)).then_some(target)
}

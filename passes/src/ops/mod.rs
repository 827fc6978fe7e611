//! Operators. One rule states everything about one operator: the types of its results, its pullback or its decomposition into
//! other operators, and samples. The tests compare the types with another engine and the pullback with finite differences.
//!
//! To add an operator, write its file and add its line to the list below. A pass names only the operators that it rewrites.

mod axes;
pub(crate) mod blocks;
pub mod broadcast;
pub mod build;
mod class;
mod decompose;
pub mod eval;
mod flat;
pub(crate) mod formula;
mod listed;
mod place;
mod pullback;
mod reduce;
mod row;
mod sample;
mod scan;
mod typed;
mod unary;
mod unruled;
mod window;

pub use axes::{Along, Axes, Label, axes, axes_of};
pub use class::{Class, Mixing, is_random, keeps_elements, passes_through, reads_element_type, reads_values};
pub(crate) use class_losses::{Picked, pick, weighted_mean};
pub(crate) use conv_transpose::explicit_padding;
pub use decompose::{Decomposed, Source};
pub(crate) use fake_quantize::range as integer_range;
pub use place::sum_terms;
pub use pullback::{Contribution, Cotangent, Cotangents, Deferred, GradError, Pullback};
pub(crate) use recurrent::is_batch_first;
pub(crate) use route::ROUTE_SOURCES;
pub use sample::{Sample, SampleOperand};
pub(crate) use transpose::permutation;
pub use unruled::{unruled, why_no_rule};
pub(crate) use window::write_padding_out;

// The operators' files import all of this by `use super::*`.
use crate::ir::{ANCRE, Attrs, DType, Dim, Graph, NodeId, Op, Tensor, TensorType, ValueId, ValueType};
use crate::refusal::Why;
use broadcast::broadcast;
use build::{BuildError, Builder, Built};
use decompose::{constant, extent, one, refuse_if, type_of, unfit};
use eval::{Array, Facts, Poly};
use formula::{Term, formula, formulas};
use row::{ROW, Row};
use sample::{fixed, floats, floats_in, ints, ints_of, plain, sample, truths, values};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The operands or attributes do not fit the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(pub String);

/// What a shape rule sees.
pub struct Infer<'a> {
    /// The operator with its attributes.
    pub op: &'a Op,
    /// Types of the operands; `None` where missing or unknown.
    pub types: &'a [Option<TensorType>],
    /// Elements of an operand where they are known: numbers, or polynomials over extents.
    pub array: &'a dyn Fn(usize) -> Option<Array<Poly>>,
    /// Is the operand given?
    pub present: &'a dyn Fn(usize) -> bool,
}

impl Infer<'_> {
    /// The attributes.
    pub fn attrs(&self) -> &Attrs {
        &self.op.attrs
    }

    /// Type of operand `i`.
    ///
    /// # Errors
    /// When it is missing or unknown.
    pub fn ty(&self, i: usize) -> Result<&TensorType, TypeError> {
        self.types
            .get(i)
            .and_then(Option::as_ref)
            .ok_or_else(|| TypeError(format!("operand {i} of {} is missing or of unknown type", self.op.name)))
    }

    /// Elements of an integer operand, if all of them are numbers.
    pub fn ints(&self, i: usize) -> Option<Vec<i64>> {
        (self.array)(i)?.ints()
    }

    /// Elements of an integer operand; symbolic extents are allowed.
    pub fn extents(&self, i: usize) -> Option<Vec<Dim>> {
        (self.array)(i)?.extents()
    }

    /// The attribute `axis`, counted from the front.
    pub fn axis(&self) -> Result<usize, TypeError> {
        let ty = self.ty(0)?;
        let a = self.op.int("axis");
        ty.axis(a).ok_or_else(|| TypeError(format!("axis {a} is out of range for {ty}")))
    }

    /// The shape that operand `i` holds. Where the graph computes the operand, every extent is unknown.
    fn target(&self, i: usize, what: &str) -> Result<Vec<Dim>, TypeError> {
        // A damaged file may ask for any rank; nothing is allocated for one that no engine takes.
        const MOST_AXES: i64 = 1 << 10;
        let one_axis = self.types.get(i).and_then(Option::as_ref).is_none_or(|ty| ty.rank() == 1);
        self.require(one_axis, || "the target shape is no vector".into())?;
        if let Some(dims) = self.extents(i) {
            return Ok(dims);
        }
        let rank = self.ty(i)?.shape.first().and_then(Dim::known).filter(|n| (0..=MOST_AXES).contains(n));
        let rank = rank.ok_or_else(|| TypeError("the rank of the target shape is unknown".into()))?;
        Ok((0..rank).map(|_| unknown_dim(what)).collect())
    }

    /// The element type that the attribute `dtype` names; `otherwise` without the attribute.
    fn asked_dtype(&self, otherwise: DType) -> Result<DType, TypeError> {
        match self.attrs().get("dtype") {
            None => Ok(otherwise),
            Some(_) => {
                let dtype = DType::from_onnx(self.op.int("dtype") as i32);
                dtype.ok_or_else(|| TypeError("its `dtype` names no element type".into()))
            }
        }
    }

    /// Fails if operand `i`, where it is there and its type is known, does not broadcast into a type.
    pub fn into(&self, ty: &TensorType, i: usize) -> Result<(), TypeError> {
        let Some(Some(own)) = self.types.get(i) else { return Ok(()) };
        let wide = TensorType::new(ty.dtype, broadcast(&ty.shape, &own.shape)?);
        self.require(wide.may_be(ty), || format!("operand {i}, {own}, does not broadcast into {ty}"))
    }

    /// Fails if an operand from `first` on has more or fewer elements than one, as far as types tell.
    fn single_from(&self, first: usize) -> Result<(), TypeError> {
        let single = |ty: &TensorType| ty.elements().known().is_none_or(|n| n == 1);
        let other = (first..self.types.len()).find(|i| self.types[*i].as_ref().is_some_and(|ty| !single(ty)));
        other.map_or(Ok(()), |i| Err(TypeError(format!("operand {i} is no single number"))))
    }

    /// Fails unless `condition` holds.
    pub fn require(&self, condition: bool, what: impl FnOnce() -> String) -> Result<(), TypeError> {
        if condition { Ok(()) } else { Err(TypeError(what())) }
    }
}

/// Types of a node's results.
pub type Types = Result<Vec<TensorType>, TypeError>;

/// The operator set of ONNX Runtime's own operators, which its optimiser leaves in the models it saves.
pub(crate) const MICROSOFT: &str = "com.microsoft";

/// How an operator takes part in differentiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Derivative {
    /// It has a pullback.
    Pullback,
    /// It is written as other operators first; the text names them.
    Decompose(&'static str),
    /// Its derivative is zero wherever it exists (comparisons, shapes, roundings): cotangents stop here.
    Zero,
    /// It has no derivative, for this reason.
    None(&'static str),
}

/// Everything the passes know about one operator.
pub trait OpRule: Sync {
    /// Operator name.
    fn name(&self) -> &'static str;

    /// Operator set; empty for `ai.onnx`.
    fn domain(&self) -> &'static str {
        ""
    }

    /// What kind of operator it is.
    fn class(&self) -> Class {
        Class::of(&Op { domain: self.domain().into(), ..Op::new(self.name(), Attrs::new()) })
    }

    /// Types of the results.
    fn infer(&self, cx: &Infer) -> Types;

    /// How it takes part in differentiation.
    fn derivative(&self) -> Derivative {
        Derivative::Pullback
    }

    /// Computes the operands' cotangents from the results' cotangents. Called only if [`OpRule::derivative`] is a pullback.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        Err(p.unsupported("this operator has no pullback"))
    }

    /// May its slope at an operand be infinite at a number: a division by zero, the root of zero?
    fn has_pole(&self, _: &Graph, _node: NodeId, _operand: usize) -> bool {
        false
    }

    /// Builds the operators that it is written as. Called only if [`OpRule::derivative`] is a decomposition, and for recurrences whose
    /// first axis is the batch.
    ///
    /// # Errors
    /// When this use of the operator has no such form.
    fn decompose(&self, _: &mut Builder, _: &Source) -> Decomposed {
        Err(Why::Form("has no plain form".into()))
    }

    /// Turns the terms that this operator's pullbacks deferred for a value into cotangents, when the value's producer is
    /// reached. It may also settle other values that wait for the same terms.
    fn gather(
        &self,
        b: &mut Builder,
        _cts: &mut Cotangents,
        _v: ValueId,
        terms: &[Deferred],
    ) -> Result<Vec<ValueId>, GradError> {
        let site = b.graph.site(terms[0].node);
        let reason = "its rule defers terms and does not gather them".into();
        Err(GradError::NoPullback { site, reason, path: String::new(), hint: None })
    }

    /// Builds an abstract operator's results from plain operators, in the form that suits the builder's target. The node stays.
    fn lower(&self, b: &mut Builder, _node: NodeId) -> Result<Vec<ValueId>, build::BuildError> {
        Err(b.error(self.name(), TypeError("the operator is not an abstract one that is lowered by itself".into())))
    }

    /// Applications on which the tests run the rule.
    fn samples(&self) -> Vec<Sample>;
}

macro_rules! ops {
    ($($module:ident :: $($rule:ident),+ ;)*) => {
        $(mod $module;)*
        const LISTED: &[&dyn OpRule] = &[$($(&$module::$rule),+),*];
    };
}

// One line is one file: an operator, an inverse pair, or a family that differs in one formula. The tables `unary`
// (element-wise functions of one operand), `reduce` (reductions) and `flat` (derivative zero) hold further operators.
ops! {
    arithmetic::ADD, SUM, MEAN, SUB, MUL, DIV, MOD;
    attention::ATTENTION, PACKED, MULTI_HEAD, ROTARY, FUSED_ROTARY;
    average_pool::AVERAGE_POOL;
    batch_norm_train::BATCH_NORM_TRAIN;
    batch_normalization::BATCH_NORMALIZATION;
    conv::CONV;
    col2im::COL2IM;
    conv_transpose::CONV_TRANSPOSE;
    conv_weight::CONV_WEIGHT_COTANGENT;
    einsum::EINSUM;
    gemm::GEMM;
    global_pool::GLOBAL_AVERAGE_POOL, GLOBAL_MAX_POOL;
    fourier::DFT;
    fused_product::MATMUL, TRANSPOSED, CONV, GEMM;
    group_normalization::GROUP, INSTANCE_NORMALIZATION;
    layer_normalization::LAYER_NORMALIZATION;
    lp_normalization::LP_NORMALIZATION;
    lp_pool::LP_POOL, GLOBAL_LP_POOL;
    lrn::LRN;
    matmul::MATMUL;
    matmul_nbits::MATMUL_NBITS;
    max_pool::MAX_POOL;
    recurrent::LSTM, GRU, RNN;
    rms_normalization::RMS, SIMPLIFIED, FUSED;
    sequence::AT;
    skip_normalization::LAYER, SIMPLIFIED, EMBED, PLAIN;
    softmax::SOFTMAX, LOG_SOFTMAX;
    prelu::PRELU;
    qlinear::CONV, CONTRIBUTED_CONV, MATMUL, MATMUL_TO_FLOAT, DYNAMIC_MATMUL, GEMM, ADD, MUL, AVERAGE_POOL, GLOBAL_AVERAGE_POOL, LEAKY_RELU, SIGMOID, SOFTMAX,
        REDUCE_MEAN, CONCAT, WHERE;
    gelu::GELU, SWISH, FUSED, BIAS_GELU, FAST_GELU, QUICK_GELU, SWIGLU;
    identity::IDENTITY;
    max::MAX, MIN;
    pow::POW;
    clip::CLIP;
    select::WHERE;
    cast::CAST, CAST_LIKE, BIT_CAST;
    dropout::DROPOUT;
    trilu::TRILU;
    causal_conv::CAUSAL_CONV;
    class_losses::NLL, CROSS_ENTROPY;
    cumprod::CUM_PROD;
    cumsum::CUM_SUM;
    linear_attention::LINEAR_ATTENTION;
    route::Route, ROUTE_COTANGENT, ROUTE_WEIGHTS_COTANGENT;
    top_k::TOP_K;
    transpose::TRANSPOSE;
    reshape::RESHAPE;
    flatten::FLATTEN;
    squeeze::SQUEEZE, UNSQUEEZE;
    expand::EXPAND;
    fake_quantize::FAKE_QUANTIZE, QUANTIZE;
    concat::CONCAT;
    split::SPLIT;
    slice::SLICE;
    gather::GATHER, GATHER_ELEMENTS;
    gather_nd::GATHER_ND;
    scatter::SCATTER_ELEMENTS, SCATTER_ND;
    pad::PAD;
    tile::TILE;
    resize::RESIZE, UPSAMPLE;
    depth_to_space::DEPTH_TO_SPACE, SPACE_TO_DEPTH;
    range::RANGE;
    one_hot::ONE_HOT;
}

/// Every operator rule: the list above, then the tables.
pub fn rules() -> &'static [&'static dyn OpRule] {
    static ALL: OnceLock<Vec<&'static dyn OpRule>> = OnceLock::new();
    ALL.get_or_init(|| {
        let unary = unary::UNARY.iter().map(|r| r as &dyn OpRule);
        let reduce = reduce::REDUCE.iter().map(|r| r as &dyn OpRule);
        let flat = flat::FLAT.iter().map(|r| r as &dyn OpRule);
        LISTED.iter().copied().chain(unary).chain(reduce).chain(flat).collect()
    })
}

/// The rule of an operator.
pub fn rule(op: &Op) -> Option<&'static dyn OpRule> {
    static TABLE: OnceLock<HashMap<(&'static str, &'static str), &'static dyn OpRule>> = OnceLock::new();
    let table = TABLE.get_or_init(|| rules().iter().map(|r| ((r.domain(), r.name()), *r)).collect());
    let domain = if op.domain == "ai.onnx" { "" } else { op.domain.as_str() };
    table.get(&(domain, op.name.as_str())).copied()
}

/// Runs `ask` on an operator and what is known of its operands.
fn about<T>(op: &Op, operands: &[Option<ValueId>], known: &dyn Facts<Poly>, ask: impl FnOnce(&Infer) -> T) -> T {
    let types: Vec<Option<TensorType>> = operands.iter().map(|v| v.and_then(|v| known.ty(v).tensor())).collect();
    let array = |i: usize| operands.get(i).copied().flatten().and_then(|v| known.array(v)).map(Cow::into_owned);
    let present = |i: usize| operands.get(i).is_some_and(Option::is_some);
    ask(&Infer { op, types: &types, array: &array, present: &present })
}

/// Types of an operator's results, from what is known of the operands; `None` for an unknown operator.
pub fn result_types(op: &Op, operands: &[Option<ValueId>], known: &dyn Facts<Poly>) -> Option<Types> {
    about(op, operands, known, infer)
}

/// Why a node is not one that its operator's rules read, where that can be told: its rule refuses operands whose types are known and
/// whose integers are constants. Its derivative and its plain form take for granted what its rule has asked for.
pub fn misfit(g: &Graph, id: NodeId) -> Option<TypeError> {
    let fixed = |v: ValueId| g.tensor_type(v).is_some_and(|t| t.dtype.is_float() || g.constant(v).is_some());
    if !g.operands(id).iter().flatten().all(|v| fixed(*v)) {
        return None;
    }
    result_types(g.op(id)?, g.operands(id), g)?.err()
}

/// Why a node's derivative may not be asked: it takes for granted what its rule asks for, and indexes shapes by it. `None` where the rule
/// can be applied, or where it fails only of integers that the graph computes.
pub fn unready(g: &Graph, id: NodeId) -> Option<TypeError> {
    let computed = Cell::new(false);
    let found = about(g.op(id)?, g.operands(id), g, |cx| {
        let array = |i: usize| {
            let elements = (cx.array)(i);
            let open = (cx.present)(i) && elements.as_ref().is_none_or(|a| a.ints().is_none());
            computed.set(computed.get() || open);
            elements
        };
        infer(&Infer { array: &array, ..*cx })
    });
    let untyped = g.operands(id).iter().flatten().any(|v| g.tensor_type(*v).is_none());
    found?.err().filter(|_| untyped || !computed.get())
}

/// Types of the results, by the operator's rule or by its line in [`typed`].
pub(crate) fn infer(cx: &Infer) -> Option<Types> {
    rule(cx.op).map(|rule| rule.infer(cx)).or_else(|| typed::infer(cx))
}

/// A graph knows the types it records and the elements of small constants.
impl Facts<Poly> for Graph {
    fn array(&self, v: ValueId) -> Option<Cow<'_, Array<Poly>>> {
        Array::of_tensor(self.constant(v)?, MOST_ELEMENTS).map(Cow::Owned)
    }

    fn ty(&self, v: ValueId) -> ValueType {
        self.value(v).ty.clone()
    }
}

/// Most elements of a value that takes part in the arithmetic on shapes.
pub const MOST_ELEMENTS: usize = 4096;

/// Elements of a value that is a small integer constant.
pub fn constant_ints(graph: &Graph, v: ValueId) -> Option<Vec<i64>> {
    let t = graph.constant(v)?;
    if t.len() > MOST_ELEMENTS || t.dtype().is_float() { None } else { t.to_i64().ok() }
}

/// The type of the first operand, for element-wise operators of one operand.
pub(crate) fn like_first(cx: &Infer) -> Types {
    Ok(vec![cx.ty(0)?.clone()])
}

/// The broadcast of all operands, which have one element type.
pub(crate) fn like_all(cx: &Infer) -> Types {
    let mut all = cx.ty(0)?.clone();
    for i in 1..cx.types.len() {
        let other = cx.ty(i)?;
        cx.require(other.dtype == all.dtype, || format!("element types {} and {} differ", all.dtype, other.dtype))?;
        all.shape = broadcast(&all.shape, &other.shape)?;
    }
    Ok(vec![all])
}

/// A boolean of the broadcast shape, for comparisons and logic.
pub(crate) fn bool_like_all(cx: &Infer) -> Types {
    let mut shape = cx.ty(0)?.shape.clone();
    for i in 1..cx.types.len() {
        shape = broadcast(&shape, &cx.ty(i)?.shape)?;
    }
    Ok(vec![TensorType::new(DType::Bool, shape)])
}

/// The number of elements of a shape.
pub(crate) fn product(shape: &[Dim]) -> Dim {
    shape.iter().fold(Dim::from(1), |n, d| &n * d)
}

/// A dimension that is not known, distinct from every other.
pub(crate) fn unknown_dim(what: &str) -> Dim {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    Dim::symbol(&format!("?{what}{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

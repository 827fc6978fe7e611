//! Operators. One file (or one line of a table, in a family that differs in a formula) states everything about one operator: its
//! shape rule, its pullback or how it is written as other operators, the opsets it stands for, and samples by which the tests
//! compare the first with another engine and the second with finite differences.
//!
//! To add an operator, write its file and add its line to the list below. The passes know no operator by name beyond what
//! they rewrite.

mod axes;
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
mod sample;
mod typed;
mod unary;
mod unruled;
mod window;

pub use axes::{Along, Axes, Label, axes, axes_of};
pub use class::{Class, Mixing, is_random, keeps_elements, passes_through, reads_values};
pub(crate) use conv_transpose::explicit_padding;
pub(crate) use decompose::MICROSOFT;
pub use decompose::{Decomposed, Source};
pub use place::sum_terms;
pub use pullback::{Contribution, Cotangent, Cotangents, Deferred, GradError, Pullback};
pub(crate) use route::ROUTE_SOURCES;
pub use sample::{Sample, SampleOperand};
pub(crate) use transpose::permutation;
pub use unruled::{unruled, why_no_rule};

use crate::ir::{Attrs, DType, Dim, Graph, NodeId, Op, TensorType, ValueId, ValueType};
use crate::refusal::Why;
use build::{Builder, Built};
use eval::{Array, Facts, Poly};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The operands or attributes do not make sense for the operator.
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
    /// Is the operand there at all?
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

    /// Elements of an operand of integers that are all numbers.
    pub fn ints(&self, i: usize) -> Option<Vec<i64>> {
        (self.array)(i)?.ints()
    }

    /// Elements of an operand of known integers, extents of other values among them.
    pub fn extents(&self, i: usize) -> Option<Vec<Dim>> {
        (self.array)(i)?.extents()
    }

    /// The single axis attribute, counted from the front.
    pub fn axis(&self) -> Result<usize, TypeError> {
        let ty = self.ty(0)?;
        let a = self.op.int("axis");
        ty.axis(a).ok_or_else(|| TypeError(format!("axis {a} is out of range for {ty}")))
    }

    /// The shape that operand `i` names: its elements, or as many unknown extents if they are computed in the graph.
    fn target(&self, i: usize, what: &str) -> Result<Vec<Dim>, TypeError> {
        // A rank that no engine takes is damage, which must not be allocated for.
        const MOST_AXES: i64 = 1 << 10;
        if let Some(dims) = self.extents(i) {
            return Ok(dims);
        }
        let rank = self.ty(i)?.shape.first().and_then(Dim::known).filter(|n| (0..=MOST_AXES).contains(n));
        let rank = rank.ok_or_else(|| TypeError("the rank of the target shape is unknown".into()))?;
        Ok((0..rank).map(|_| unknown_dim(what)).collect())
    }

    /// The element type that the attribute `dtype` names, or another one without it.
    fn asked_dtype(&self, otherwise: DType) -> Result<DType, TypeError> {
        match self.attrs().get("dtype") {
            None => Ok(otherwise),
            Some(_) => {
                let dtype = DType::from_onnx(self.attrs().int("dtype", 0) as i32);
                dtype.ok_or_else(|| TypeError("its `dtype` is no element type".into()))
            }
        }
    }

    /// Complains if operand `i`, where it is there and its type is known, does not broadcast into a type.
    pub fn into(&self, ty: &TensorType, i: usize) -> Result<(), TypeError> {
        let Some(Some(own)) = self.types.get(i) else { return Ok(()) };
        let wide = TensorType::new(ty.dtype, broadcast::broadcast(&ty.shape, &own.shape)?);
        self.require(wide.may_be(ty), || format!("operand {i}, {own}, does not broadcast into {ty}"))
    }

    /// Complains unless `condition` holds.
    pub fn require(&self, condition: bool, what: impl FnOnce() -> String) -> Result<(), TypeError> {
        if condition { Ok(()) } else { Err(TypeError(what())) }
    }
}

/// Types of a node's results.
pub type Types = Result<Vec<TensorType>, TypeError>;

/// How an operator takes part in differentiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Derivative {
    /// It has a pullback.
    Pullback,
    /// It is written as other operators first; as which, in words.
    Decompose(&'static str),
    /// Its derivative is zero wherever it exists (comparisons, shapes, roundings): cotangents stop here.
    Zero,
    /// It has none, for this reason.
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

    /// Its part in differentiation.
    fn derivative(&self) -> Derivative {
        Derivative::Pullback
    }

    /// Adds to the operands' cotangents what the results' cotangents give. Only called when [`OpRule::derivative`] says
    /// there is a pullback.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        Err(p.unsupported("this operator has no pullback"))
    }

    /// May its slope at an operand be infinite at a number: a division by zero, the root of zero?
    fn has_pole(&self, _: &Graph, _node: NodeId, _operand: usize) -> bool {
        false
    }

    /// Builds the operators that it is written as, where [`OpRule::derivative`] says that it is.
    ///
    /// # Errors
    /// When this use of it cannot be written so.
    fn decompose(&self, _: &mut Builder, _: &Source) -> Decomposed {
        Err(Why::Form("has no plain form".into()))
    }

    /// What a value's terms that pullbacks of this operator left to it come to, all at once when the value's producer is
    /// reached. May settle the cotangents of other values that wait for the same terms.
    fn gather(
        &self,
        b: &mut Builder,
        _cts: &mut Cotangents,
        _v: ValueId,
        terms: &[Deferred],
    ) -> Result<Vec<ValueId>, GradError> {
        let site = b.graph.site(terms[0].node);
        let reason = "its rule does not say what its deferred terms come to".into();
        Err(GradError::NoPullback { site, reason, path: String::new() })
    }

    /// An abstract operator's results in plain ones, as they are best on the builder's target. The node itself stays.
    fn lower(&self, b: &mut Builder, _node: NodeId) -> Result<Vec<ValueId>, build::BuildError> {
        Err(b.error(self.name(), TypeError("it is no operator that is lowered by itself".into())))
    }

    /// Applications by which the rules are tested.
    fn samples(&self) -> Vec<Sample>;
}

macro_rules! ops {
    ($($module:ident :: $($rule:ident),+ ;)*) => {
        $(mod $module;)*
        const LISTED: &[&dyn OpRule] = &[$($(&$module::$rule),+),*];
    };
}

// One line an operator (an inverse pair or a family that differs in one formula may share a file). Element-wise functions of
// one operand are the lines of `unary`, reductions those of `reduce`, operators of derivative zero those of `flat`.
ops! {
    add::Add;
    attention::ATTENTION, PACKED, MULTI_HEAD, ROTARY, FUSED_ROTARY;
    average_pool::AveragePool;
    batch_norm_train::BatchNormTrain;
    batch_normalization::BatchNormalization;
    conv::Conv;
    col2im::COL2IM;
    conv_transpose::ConvTranspose;
    conv_weight::ConvWeightCotangent;
    einsum::Einsum;
    gemm::Gemm;
    global_pool::GlobalAveragePool, GlobalMaxPool;
    fourier::DFT;
    fused_product::MATMUL, TRANSPOSED, CONV, GEMM;
    group_normalization::GROUP, InstanceNormalization;
    layer_normalization::LayerNormalization;
    lp_normalization::LpNormalization;
    lp_pool::LpPool, GlobalLpPool;
    lrn::Lrn;
    matmul::MatMul;
    max_pool::MaxPool;
    recurrent::LSTM, GRU, RNN;
    rms_normalization::RMS, SIMPLIFIED, FUSED;
    sequence::AT;
    skip_normalization::LAYER, SIMPLIFIED, EMBED, PLAIN;
    softmax::Softmax, LogSoftmax;
    sub::Sub;
    mul::Mul;
    div::Div;
    prelu::PRelu;
    gelu::GELU, SWISH, FUSED, BIAS_GELU, FAST_GELU, QUICK_GELU;
    identity::Identity;
    sum::Sum, Mean;
    max::Max, Min;
    pow::Pow;
    clip::Clip;
    select::Where;
    cast::Cast, CastLike, BitCast;
    dropout::Dropout;
    modulo::Mod;
    trilu::Trilu;
    causal_conv::CAUSAL_CONV;
    cumprod::CUM_PROD;
    cumsum::CumSum;
    linear_attention::LINEAR_ATTENTION;
    swiglu::SWIGLU;
    route::Route, RouteCotangent, RouteWeightsCotangent;
    top_k::TopK;
    transpose::Transpose;
    reshape::Reshape;
    flatten::Flatten;
    squeeze::Squeeze, Unsqueeze;
    expand::Expand;
    concat::Concat;
    split::Split;
    slice::Slice;
    gather::Gather;
    gather_elements::GatherElements;
    gather_nd::GatherND;
    scatter_elements::ScatterElements;
    scatter_nd::ScatterND;
    pad::Pad;
    tile::Tile;
    resize::Resize, Upsample;
    depth_to_space::DepthToSpace, SpaceToDepth;
    constant::Constant;
    range::Range;
    one_hot::OneHot;
}

/// Every operator rule: those of the list above, then the lines of the tables.
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

/// Types of an operator's results, from what is known of the operands; `None` of an operator that nothing is known of.
pub fn result_types(op: &Op, operands: &[Option<ValueId>], known: &dyn Facts<Poly>) -> Option<Types> {
    let types: Vec<Option<TensorType>> = operands.iter().map(|v| v.and_then(|v| known.ty(v).tensor())).collect();
    let array = |i: usize| operands.get(i).copied().flatten().and_then(|v| known.array(v)).map(Cow::into_owned);
    let present = |i: usize| operands.get(i).is_some_and(Option::is_some);
    infer(&Infer { op, types: &types, array: &array, present: &present })
}

/// Why a node is none that its operator's rules read, where that can be told: its rule refuses operands whose types are known, and
/// whose integers are constants. Its derivative and its plain form take for granted what its rule has asked for.
pub fn misfit(g: &Graph, id: NodeId) -> Option<TypeError> {
    let fixed = |v: ValueId| g.tensor_type(v).is_some_and(|t| t.dtype.is_float() || g.constant(v).is_some());
    if !g.operands(id).iter().flatten().all(|v| fixed(*v)) {
        return None;
    }
    result_types(g.op(id)?, g.operands(id), g)?.err()
}

/// By the operator's rule, or of one that has none by what is known of its types alone.
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

/// Elements above which a value takes no part in the arithmetic on shapes.
pub const MOST_ELEMENTS: usize = 4096;

/// Elements of a value that is a small integer constant.
pub fn constant_ints(graph: &Graph, v: ValueId) -> Option<Vec<i64>> {
    let t = graph.constant(v)?;
    if t.len() > 4096 || t.dtype().is_float() { None } else { t.to_i64().ok() }
}

/// The type of the first operand, for element-wise operators of one operand.
pub(crate) fn like_first(cx: &Infer) -> Types {
    Ok(vec![cx.ty(0)?.clone()])
}

/// The broadcast of all operands, with the first one's element type.
pub(crate) fn like_all(cx: &Infer) -> Types {
    let mut all = cx.ty(0)?.clone();
    for i in 1..cx.types.len() {
        let other = cx.ty(i)?;
        cx.require(other.dtype == all.dtype, || format!("element types {} and {} differ", all.dtype, other.dtype))?;
        all.shape = broadcast::broadcast(&all.shape, &other.shape)?;
    }
    Ok(vec![all])
}

/// A boolean of the broadcast shape, for comparisons and logic.
pub(crate) fn bool_like_all(cx: &Infer) -> Types {
    let mut shape = cx.ty(0)?.shape.clone();
    for i in 1..cx.types.len() {
        shape = broadcast::broadcast(&shape, &cx.ty(i)?.shape)?;
    }
    Ok(vec![TensorType::new(DType::Bool, shape)])
}

/// A dimension nobody can name yet: distinct from every other.
pub(crate) fn unknown_dim(what: &str) -> Dim {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    Dim::symbol(&format!("?{what}{}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

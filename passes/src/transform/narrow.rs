//! Mixed precision: products and convolutions compute in float16 or bfloat16, everything else in float32.
//!
//! ```text
//!   before  y = MatMul(x, w)
//!   after   y = Cast<f32>(MatMul(Cast<f16>(x), Cast<f16>(w)))
//! ```
//!
//! Before differentiation, so that the gradients' products are in the same type, and the gradients of the casts are float32 again. A value
//! is cast once, however many products read it. What moves elements, a bias, a `Relu` and a constant factor between two products stay in
//! the narrow type, and so do their gradients, as under PyTorch's autocast. Softmaxes, normalisations, other activations, residual states,
//! routers and the loss are float32, and so is what does not depend on what trains (tables of positions).

use crate::ir::{Attrs, DType, Graph, Kind, NodeId, NodeSite, Op, TensorType, ValueId, words};
use crate::ops::{Class, Mixing};
use std::collections::{HashMap, HashSet};

words! {
    /// The type of products and convolutions.
    Precision {
        /// float32.
        Single = "fp32",
        /// float16, with a loss scale.
        Half = "fp16",
        /// bfloat16.
        Brain = "bf16",
    }
}

impl Precision {
    /// The narrow type, if there is one.
    pub fn narrow(self) -> Option<DType> {
        match self {
            Precision::Single => None,
            Precision::Half => Some(DType::F16),
            Precision::Brain => Some(DType::BF16),
        }
    }
}

/// What became narrow.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Narrowed {
    /// Number of products and convolutions in the narrow type, in the forward pass.
    pub products: usize,
    /// Those that stay float32, because the operator does not take the type.
    pub left: Vec<NodeSite>,
}

/// Lets products and convolutions that depend on what trains compute in a narrow type.
pub fn narrow_products(g: &mut Graph, dtype: DType, trained: &[ValueId]) -> Narrowed {
    let active = g.descendants(trained.iter().map(|v| v.node));
    let mut pass = Narrow { dtype, narrow: HashMap::new(), wide: Vec::new() };
    let mut made = Narrowed::default();
    for node in g.topological_order().into_iter().filter(|n| active.contains(n)) {
        if is_product(g, node) && floats_are_single(g, node) {
            if takes(g, node, dtype) {
                pass.node(g, node);
                made.products += 1;
            } else {
                made.left.push(g.site(node));
            }
        } else if pass.carries(g, node) {
            pass.node(g, node);
        }
    }
    pass.remove_unread(g);
    made
}

fn is_product(g: &Graph, node: NodeId) -> bool {
    // A router's own products weigh its states.
    if g.node(node).name.strip_prefix("ancre/").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit())) {
        return false;
    }
    g.op(node)
        .is_some_and(|op| op.domain.is_empty() && ["MatMul", "Gemm", "Conv", "ConvTranspose"].contains(&op.name.as_str()))
}

/// Convolutions take bfloat16 from opset 22 on.
fn takes(g: &Graph, node: NodeId, dtype: DType) -> bool {
    let opset = g.opsets.get("").copied().unwrap_or_default();
    let convolution = g.op(node).is_some_and(|op| Class::of(op) == Class::Mixing(Mixing::Conv));
    !(dtype == DType::BF16 && convolution && opset < 22)
}

fn floats_are_single(g: &Graph, node: NodeId) -> bool {
    let single = |v: ValueId| g.value(v).ty.dtype == Some(DType::F32) && g.tensor_type(v).is_some();
    g.results(node).all(|v| single(v) && !g.is_captured(v)) && g.operands(node).iter().flatten().all(|v| single(*v))
}

/// The values of a graph that becomes narrow.
struct Narrow {
    dtype: DType,
    /// Float32 values that are there in the narrow type too.
    narrow: HashMap<ValueId, ValueId>,
    /// Those that are casts of narrow results, with these.
    wide: Vec<(ValueId, ValueId)>,
}

impl Narrow {
    /// Is a node between products one that does as well in the narrow type?
    fn carries(&self, g: &Graph, node: NodeId) -> bool {
        let Some(op) = g.op(node).filter(|op| op.domain.is_empty()) else { return false };
        let operands: Vec<ValueId> = g.operands(node).iter().flatten().copied().collect();
        let known = |v: &ValueId| self.narrow.contains_key(v);
        let single = |v: &ValueId| g.value(*v).ty.dtype == Some(DType::F32);
        let results = g.results(node).all(|v| single(&v) && g.tensor_type(v).is_some() && !g.is_captured(v));
        if !results || !operands.first().is_some_and(known) {
            return false;
        }
        match op.name.as_str() {
            "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" | "Slice" | "Split" | "Identity" | "Relu" => true,
            "Concat" => operands.iter().all(known),
            "Mul" | "Div" => operands.len() == 2 && self.is_factor(g, operands[1]),
            "Add" => operands.len() == 2 && is_bias(g, operands[1]),
            _ => false,
        }
    }

    /// A scalar constant that the narrow type holds well.
    fn is_factor(&self, g: &Graph, v: ValueId) -> bool {
        let scalar = g.constant(v).filter(|t| t.len() == 1).and_then(|t| t.to_f64().ok()).and_then(|x| x.first().copied());
        scalar.is_some_and(|x| (1e-3..=1e3).contains(&x.abs()))
    }

    /// Makes a node read and give narrow values; float32 readers get a cast of its results.
    fn node(&mut self, g: &mut Graph, node: NodeId) {
        for i in 0..g.operands(node).len() {
            let Some(v) = g.operand(node, i).filter(|v| g.value(*v).ty.dtype == Some(DType::F32)) else { continue };
            let narrow = match self.narrow.get(&v) {
                Some(narrow) => *narrow,
                None => {
                    let narrow = cast(g, v, self.dtype);
                    self.narrow.insert(v, narrow);
                    narrow
                }
            };
            g.set_operand(node, i, Some(narrow));
        }
        for v in g.results(node) {
            let Some(ty) = g.tensor_type(v) else { continue };
            g.set_type(v, TensorType { dtype: self.dtype, ..ty }.into());
            if g.name(v).is_empty() {
                continue;
            }
            let wide = cast(g, v, DType::F32);
            let own = wide.node;
            // The name, the readers and the outputs are the float32 value's.
            let was_output = g.is_output(v);
            g.swap_names(v, wide);
            g.replace_uses(v, wide, |n| n != own);
            g.routers.values_mut().for_each(|r| r.redirect(v, wide));
            if was_output {
                g.redirect_output(v, wide);
            }
            let name = format!("ancre/{}/{}", self.dtype.name(), g.name(wide));
            g.rename(v, &name);
            self.narrow.insert(wide, v);
            self.wide.push((wide, v));
        }
    }

    /// Removes casts to float32 that nobody reads. Their names are the narrow results' then.
    fn remove_unread(self, g: &mut Graph) {
        let of_routers: HashSet<ValueId> = g.routers.values().flat_map(|r| r.values()).collect();
        let mut renamed = HashSet::new();
        for (wide, narrow) in self.wide.into_iter().rev() {
            if !g.is_needed(wide) && !of_routers.contains(&wide) {
                g.swap_names(wide, narrow);
                g.remove(wide.node);
                renamed.insert(narrow);
            }
        }
        // The source declares them float32.
        g.forget_declarations(&renamed);
    }
}

/// A vector that trains.
fn is_bias(g: &Graph, v: ValueId) -> bool {
    matches!(g.node(v.node).kind, Kind::Initializer { overridable: true, .. })
        && g.tensor_type(v).is_some_and(|ty| ty.rank() == 1)
}

fn cast(g: &mut Graph, v: ValueId, to: DType) -> ValueId {
    let mut ty = g.value(v).ty.clone();
    ty.dtype = Some(to);
    let stem = format!("ancre/{}/{}", to.name(), g.name(v));
    let id = g.add_op(&stem, Op::new("Cast", Attrs::new().with("to", to.onnx() as i64)), &[Some(v)]);
    g.push_result(id, &stem, ty)
}

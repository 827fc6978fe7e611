//! Where adapters can go: the nodes that multiply by a weight, convolve with it or look rows of it up.

use crate::contract::{AdapterKind, Layout};
use crate::ir::{Graph, NodeId, Op, ValueId};
use crate::ops::{permutation, reads_values};

/// A node that reads a weight.
pub(super) struct Site {
    /// The node.
    pub(super) node: NodeId,
    /// The weight's initializer.
    pub(super) weight: ValueId,
    /// What the weight is here.
    pub(super) kind: AdapterKind,
    /// Does a product contract the initializer's first axis?
    pub(super) first: bool,
    /// Extents of the map: in, out.
    pub(super) extents: [i64; 2],
    /// The node and the operand by which the map reads its input.
    pub(super) input: (NodeId, usize),
    /// What it gives.
    pub(super) output: ValueId,
    /// How the node reads input and weight.
    pub(super) form: Form,
    /// Is the weight stored in integers?
    pub(super) quantised: bool,
}

/// How a node reads its input and its weight.
pub(super) enum Form {
    /// input · W, or with `left` W · input. `turned`: the input is transposed before. Times `alpha`.
    Product { left: bool, turned: bool, alpha: f64 },
    /// A convolution.
    Conv,
    /// A look-up of rows.
    LookUp,
}

impl Site {
    /// What the map reads, as the graph is now.
    pub(super) fn read(&self, g: &Graph) -> Option<ValueId> {
        g.operand(self.input.0, self.input.1)
    }

    /// How the weight lies in its initializer, if it is meant as this node uses it.
    pub(super) fn layout(&self) -> Layout {
        match self.kind {
            AdapterKind::Conv => Layout::OutIn,
            _ if self.first => Layout::InOut,
            _ => Layout::OutIn,
        }
    }
}

/// The site of a node. `None`: it reads no weight. The error says, in words that follow "it", why a node that does is none.
pub(super) fn site(g: &Graph, node: NodeId) -> Option<Result<Site, String>> {
    let op = g.op(node)?;
    match (op.domain.as_str(), op.name.as_str()) {
        ("", "MatMul") | ("com.microsoft", "FusedMatMul" | "TransposeMatMul") => product(g, node, op),
        ("", "Gemm") => product(g, node, op),
        ("", "Conv") => convolution(g, node, op),
        ("", "Gather") => look_up(g, node, op),
        ("com.microsoft", "MatMulNBits") => by_attributes(g, node, op),
        ("com.microsoft", "DynamicQuantizeMatMul") => {
            let weight = read(g, g.operand(node, 1)?)?;
            let form = Form::Product { left: false, turned: false, alpha: 1.0 };
            Some(matrix(g, node, weight, 0, ((node, 0), g.result(node, 0)), form))
        }
        ("", "MatMulInteger") => integers(g, node),
        _ => other(g, node, op),
    }
}

/// A node that reads the numbers of a weight, or of a copy or transpose of it, and is no site.
pub(super) fn other_reader(g: &Graph, weight: ValueId, is_site: impl Fn(NodeId) -> bool) -> Option<NodeId> {
    let mut open = vec![weight];
    while let Some(v) = open.pop() {
        for (n, operand) in g.uses_in_order(v) {
            match g.op(n) {
                Some(op) if matches!(op.name.as_str(), "Identity" | "Cast" | "Transpose") => open.extend(g.results(n)),
                Some(op) if is_site(n) || !reads_values(op, operand) => {}
                _ => return Some(n),
            }
        }
    }
    None
}

/// A weight as an operand reads it.
struct Read {
    weight: ValueId,
    /// Are the axes of the matrix swapped on the way?
    swapped: bool,
    quantised: bool,
}

/// The initializer of a weight behind operators that keep its matrix.
fn read(g: &Graph, mut v: ValueId) -> Option<Read> {
    let (mut swapped, mut scaled) = (false, false);
    loop {
        if let Some(t) = g.initializer(v) {
            let quantised = !t.dtype().is_float();
            return (quantised || !scaled).then_some(Read { weight: v, swapped, quantised });
        }
        let op = g.op(v.node)?;
        match op.name.as_str() {
            "Identity" | "Cast" | "DequantizeLinear" => {}
            "Transpose" if permutation(&op.attrs, 2).is_some_and(|p| p == [1, 0]) => swapped = !swapped,
            // A weight that exporters dequantise by hand.
            "Mul" | "Sub" | "Add" | "Div" => {
                let behind = |v: &ValueId| read(g, *v).filter(|r| r.quantised);
                let r = [0, 1].into_iter().filter_map(|i| g.operand(v.node, i)).find_map(|v| behind(&v))?;
                return Some(Read { swapped: swapped != r.swapped, ..r });
            }
            _ => return None,
        }
        scaled |= op.name == "DequantizeLinear";
        v = g.operand(v.node, 0)?;
    }
}

fn dims(g: &Graph, v: ValueId) -> Option<Vec<i64>> {
    g.tensor_type(v)?.known_dims()
}

/// A site of a weight that has to be a matrix of which the node contracts `axis`, as it reads it.
fn matrix(
    g: &Graph,
    node: NodeId,
    r: Read,
    axis: usize,
    (input, output): ((NodeId, usize), ValueId),
    form: Form,
) -> Result<Site, String> {
    let Read { weight, swapped, quantised } = r;
    let axis = if swapped { 1 - axis } else { axis };
    let stored = g.initializer(weight).map(|t| t.dims().to_vec()).unwrap_or_default();
    let [rows, columns] = stored[..] else {
        return Err(format!("has the weight `{}` of shape {stored:?}, which is no matrix", g.name(weight)));
    };
    let extents = if axis == 0 { [rows, columns] } else { [columns, rows] };
    let kind = if matches!(form, Form::LookUp) { AdapterKind::Embedding } else { AdapterKind::Linear };
    Ok(Site { node, weight, kind, first: axis == 0, extents, input, output, form, quantised })
}

/// `MatMul`, `Gemm` and the products that ONNX Runtime fused.
fn product(g: &Graph, node: NodeId, op: &Op) -> Option<Result<Site, String>> {
    let operands = [g.operand(node, 0)?, g.operand(node, 1)?];
    let fed = |v: ValueId| read(g, v).is_none();
    let left = match operands.map(fed) {
        [true, false] => false,
        [false, true] => true,
        _ => return None,
    };
    let weight = operands[usize::from(!left)];
    let turns = ["transA", "transB"].map(|name| op.attrs.int(name).unwrap_or(0) != 0);
    if ["transBatchA", "transBatchB"].iter().any(|name| op.attrs.int(name).unwrap_or(0) != 0) {
        return Some(Err("transposes batches".into()));
    }
    // W · x contracts the second axis of W, x · W the first.
    let axis = usize::from(left != turns[usize::from(!left)]);
    let form =
        Form::Product { left, turned: turns[usize::from(left)], alpha: op.attrs.float("alpha").map_or(1.0, f64::from) };
    Some(matrix(g, node, read(g, weight)?, axis, ((node, usize::from(left)), g.result(node, 0)), form))
}

fn convolution(g: &Graph, node: NodeId, op: &Op) -> Option<Result<Site, String>> {
    let r = read(g, g.operand(node, 1)?)?;
    let shape = g.initializer(r.weight)?.dims().to_vec();
    let group = op.attrs.int("group").unwrap_or(1);
    if group != 1 {
        return Some(Err(format!("convolves in {group} groups")));
    }
    let site = Site {
        node,
        weight: r.weight,
        kind: AdapterKind::Conv,
        first: false,
        extents: [shape.get(1..)?.iter().product(), *shape.first()?],
        input: (node, 0),
        output: g.result(node, 0),
        form: Form::Conv,
        quantised: r.quantised,
    };
    Some(Ok(site))
}

fn look_up(g: &Graph, node: NodeId, op: &Op) -> Option<Result<Site, String>> {
    let weight = read(g, g.operand(node, 0)?)?;
    if g.initializer(weight.weight)?.dims().len() != 2 {
        return None;
    }
    if op.attrs.int("axis").unwrap_or(0) != 0 {
        return Some(Err("looks columns up".into()));
    }
    Some(matrix(g, node, weight, 0, ((node, 1), g.result(node, 0)), Form::LookUp))
}

/// A product with a matrix in blocks of a few bits, whose extents are attributes.
fn by_attributes(g: &Graph, node: NodeId, op: &Op) -> Option<Result<Site, String>> {
    let weight = g.operand(node, 1).filter(|v| g.initializer(*v).is_some())?;
    let form = Form::Product { left: false, turned: false, alpha: 1.0 };
    Some(Ok(Site {
        node,
        weight,
        kind: AdapterKind::Linear,
        // It holds a row of blocks for each column of the matrix.
        first: false,
        extents: [op.attrs.int("K")?, op.attrs.int("N")?],
        input: (node, 0),
        output: g.result(node, 0),
        form,
        quantised: true,
    }))
}

/// `MatMulInteger` between the operators that quantise its input and give its result its scale.
fn integers(g: &Graph, node: NodeId) -> Option<Result<Site, String>> {
    let weight = read(g, g.operand(node, 1)?)?;
    let quantiser = g.operand(node, 0)?.node;
    if !g.is_op(quantiser, "DynamicQuantizeLinear") {
        return Some(Err("multiplies integers that no DynamicQuantizeLinear makes".into()));
    }
    let next = |v: ValueId, name: &str| g.single_use(v).filter(|(n, _)| g.is_op(*n, name)).map(|(n, _)| g.result(n, 0));
    let Some(output) = next(g.result(node, 0), "Cast").and_then(|v| next(v, "Mul")) else {
        return Some(Err("gives integers that no Cast and Mul make the product".into()));
    };
    let form = Form::Product { left: false, turned: false, alpha: 1.0 };
    Some(matrix(g, node, weight, 0, ((quantiser, 0), output), form))
}

/// Other operators with a weight, which get no adapter.
fn other(g: &Graph, node: NodeId, op: &Op) -> Option<Result<Site, String>> {
    const WEIGHTED: &[(&str, usize)] = &[
        ("ConvTranspose", 1),
        ("Einsum", 1),
        ("LSTM", 1),
        ("GRU", 1),
        ("RNN", 1),
        ("FusedConv", 1),
        ("FusedGemm", 1),
        ("Attention", 1),
        ("QLinearConv", 3),
        ("QLinearMatMul", 3),
        ("QGemm", 3),
        ("ConvInteger", 1),
        ("GatherBlockQuantized", 0),
    ];
    let (_, operand) = WEIGHTED.iter().find(|(name, _)| *name == op.name)?;
    let weight = g.operand(node, *operand)?;
    let has = g.initializer(weight).is_some_and(|t| t.dims().len() > 1) || read(g, weight).is_some();
    has.then(|| {
        Err(format!(
            "is no MatMul, Gemm, Conv or Gather; export the model with plain operators, or leave {} as it is",
            op.full_name()
        ))
    })
}

/// The element type of an adapter: that of what the map gives.
pub(super) fn dtype(g: &Graph, s: &Site) -> Option<crate::ir::DType> {
    g.value(s.output).ty.dtype.filter(|t| t.is_float())
}

/// Is the result's type known as far as the adapter's sum needs it?
pub(super) fn is_typed(g: &Graph, s: &Site) -> bool {
    g.tensor_type(s.output).is_some()
        && (matches!(s.form, Form::LookUp) || s.read(g).is_some_and(|v| g.tensor_type(v).is_some()))
        && (s.quantised || dims(g, s.weight).is_some())
}

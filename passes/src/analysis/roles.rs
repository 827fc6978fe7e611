//! The role of each float constant of a model, and so whether it trains. Its uses decide, not its name.
//!
//! A tensor trains when it is the weight of a convolution, product or embedding, a bias, the scale or bias of a
//! normalisation, a layer scale, or a learned position. Position tables of sines and cosines, masks, epsilons and other
//! scalars do not, nor does what an exporter wrote for a parameter that the model lacks.

use super::head::constant_origin;
use super::origin::is_of_exporter;
use crate::ir::{Graph, Kind, NodeId, TensorType, ValueId};
use crate::ops::passes_through;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

/// The role of a float constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Role {
    Weight,
    Embedding,
    Bias,
    NormScale,
    NormBias,
    Scale,
    Position,
    /// Running mean or variance of a batch normalisation.
    Statistic,
    /// Not a parameter, for this reason.
    Frozen(&'static str),
}

impl Role {
    /// Does it train?
    pub fn trains(self) -> bool {
        !matches!(self, Role::Statistic | Role::Frozen(_))
    }

    /// Word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Role::Weight => "weight",
            Role::Embedding => "embedding",
            Role::Bias => "bias",
            Role::NormScale => "norm scale",
            Role::NormBias => "norm bias",
            Role::Scale => "scale",
            Role::Position => "position",
            Role::Statistic => "running statistic",
            Role::Frozen(why) => why,
        }
    }
}

/// The roles of constants, while the graph does not change.
pub struct UseRoles<'g> {
    g: &'g Graph,
    /// Nodes that depend on data a caller feeds. A token id does; a position index does not.
    fed: HashSet<NodeId>,
    /// What was found behind a node within so many operators. Without it the search doubles at each value with two readers.
    onward: RefCell<HashMap<(NodeId, usize), Role>>,
}

/// Operators that a role is looked for behind.
const FARTHEST: usize = 8;

/// Why the step of a quantisation is no parameter, unless it is asked for.
pub(crate) const QUANTISATION_SCALE: &str = "quantisation scale";

/// The role of a constant that nothing gave one yet.
const UNUSED: Role = Role::Frozen("unused");

impl<'g> UseRoles<'g> {
    /// Roles in a graph.
    pub fn new(g: &'g Graph) -> UseRoles<'g> {
        UseRoles { g, fed: g.fed(), onward: RefCell::default() }
    }

    /// The role that `v` has as operand `operand` of `consumer`.
    pub fn role(&self, v: ValueId, consumer: NodeId, operand: usize) -> Role {
        self.of_use(consumer, operand, v, FARTHEST)
    }
}

/// Roles of all float initializers, in graph order.
pub fn initializer_roles(g: &Graph) -> Vec<(ValueId, Role)> {
    let roles = UseRoles::new(g);
    let initializers = g.topological_order().into_iter().filter(|id| matches!(g.node(*id).kind, Kind::Initializer { .. }));
    let floats = initializers.map(|id| g.result(id, 0)).filter(|v| g.is_float(*v));
    floats.map(|v| (v, roles.of_constant(v))).collect()
}

impl UseRoles<'_> {
    /// The role that all uses together give a constant.
    fn of_constant(&self, v: ValueId) -> Role {
        let g = self.g;
        let Some(t) = g.initializer(v) else { return Role::Frozen("not an initializer") };
        if g.name(v).starts_with("ancre.") {
            return Role::Frozen("the router's own");
        }
        if t.is_empty() {
            return Role::Frozen("no elements");
        }
        let mut found = UNUSED;
        for (consumer, operand) in g.uses_in_order(v) {
            let r = self.role(v, consumer, operand);
            if r.trains() || found == UNUSED {
                found = r;
            }
            if r == Role::Statistic || r.trains() {
                break;
            }
        }
        if found == Role::NormScale && is_unit(t) && g.uses(v).all(|(n, _)| g.operand(n, 2).is_none()) {
            // Exporters write a unit scale for a normalisation that has no parameters.
            return Role::Frozen("unit scale of a normalisation without parameters");
        }
        if found.trains() && t.len() == 1 && g.uses(v).all(|(n, _)| g.is_op(n, "Expand")) {
            // The constant fills a first state.
            return Role::Frozen("scalar constant");
        }
        // A vocabulary's table is too long for one of distances, and is not read for that.
        if found == Role::Embedding && t.len() < 1 << 16 && t.to_f64().is_ok_and(|values| is_mask(&values)) {
            return Role::Frozen("mask");
        }
        let vector_like = matches!(found, Role::Weight | Role::Embedding | Role::NormScale | Role::NormBias);
        if found.trains() && !vector_like {
            if t.len() == 1 {
                return Role::Frozen("scalar constant");
            }
            if let Some(why) = t.to_f64().ok().and_then(|values| table(&values, t.dims(), found)) {
                return Role::Frozen(why);
            }
        }
        found
    }

    fn of_use(&self, node: NodeId, operand: usize, v: ValueId, depth: usize) -> Role {
        let (g, fed) = (self.g, self.fed.contains(&node));
        let Some(op) = g.op(node) else { return UNUSED };
        if is_of_exporter(g, node, operand, v) {
            return Role::Frozen("written by the exporter for a parameter that is not there");
        }
        let name = op.name.as_str();
        let is_vector = g.tensor_type(v).is_none_or(|t| t.rank() <= 1) || per_channel(g, v);
        if (passes_through(op) || reparametrises(name)) && operand == 0 {
            return self.onward(node, depth);
        }
        // A weight may be computed from parameters: a direction and its length, a normalised matrix.
        if matches!(name, "Mul" | "Div")
            && !fed
            && let found @ (Role::Weight | Role::Embedding | Role::Frozen(QUANTISATION_SCALE)) = self.onward(node, depth)
        {
            return found;
        }
        if name == "Gather"
            && !fed
            && let found @ Role::Frozen(QUANTISATION_SCALE) = self.onward(node, depth)
        {
            return found;
        }
        // A standardised weight.
        if matches!(name, "BatchNormTrain" | "BatchNormalization" | "InstanceNormalization" | "LayerNormalization")
            && operand == 0
            && !fed
        {
            return self.onward(node, depth);
        }
        match (name, operand) {
            ("Gemm" | "MatMul", 0) if !fed && is_grid(g, v) => Role::Frozen("table of coordinates"),
            ("FakeQuantize" | "Quantize", 1) => Role::Frozen(QUANTISATION_SCALE),
            ("Conv" | "ConvTranspose" | "FusedConv", 1) => Role::Weight,
            ("QLinearConv" | "QLinearMatMul" | "QGemm", 3) => Role::Weight,
            ("QLinearConv", 8) | ("QGemm", 6) | ("QLinearAdd", 0 | 3) => Role::Bias,
            ("QLinearMul", 0 | 3) => Role::Scale,
            ("MatMulInteger" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul" | "ConvInteger" | "MatMulNBits", 1) => {
                Role::Weight
            }
            ("Gemm" | "MatMul" | "FusedMatMul" | "Einsum", 0 | 1) => Role::Weight,
            ("Conv" | "ConvTranspose" | "FusedConv" | "Gemm", 2) => Role::Bias,
            ("LSTM" | "GRU" | "RNN", 1 | 2) => Role::Weight,
            ("LSTM" | "GRU" | "RNN", 3) => Role::Bias,
            ("Attention" | "MultiHeadAttention", 1) if op.domain == "com.microsoft" => Role::Weight,
            ("Attention" | "BiasGelu" | "FastGelu", 1 | 2) if op.domain == "com.microsoft" => Role::Bias,
            // These operators add it to their scores.
            ("Attention", 3) if op.domain.is_empty() => Role::Position,
            ("Attention" | "MultiHeadAttention", 5) if op.domain == "com.microsoft" => Role::Position,
            ("BatchNormalization", 3 | 4) => Role::Statistic,
            ("RMSNormalization" | "SimplifiedLayerNormalization", 1) => Role::NormScale,
            (
                "BatchNormalization"
                | "BatchNormTrain"
                | "LayerNormalization"
                | "InstanceNormalization"
                | "GroupNormalization",
                1 | 2,
            ) => {
                if operand == 1 {
                    Role::NormScale
                } else {
                    Role::NormBias
                }
            }
            ("SkipLayerNormalization" | "EmbedLayerNormalization", _) => Role::NormScale,
            ("Gather" | "GatherND" | "GatherElements", 0) => {
                let by_data = g.operand(node, 1).is_some_and(|i| self.fed.contains(&i.node));
                // Constant indices read positions, or a relative-position bias.
                if by_data { Role::Embedding } else { Role::Position }
            }
            ("PRelu", 1) => Role::Scale,
            ("Add" | "Sub" | "Sum", _) if feeds_softmax(g, node, depth) && is_empty_mask(g, v) => Role::Frozen("mask"),
            ("Add" | "Sub" | "Sum", _) => {
                if is_vector {
                    Role::Bias
                } else {
                    Role::Position
                }
            }
            ("Mul", _) if feeds_both_sin_and_cos(g, node) => Role::Frozen("frequencies"),
            ("Mul", _) if is_vector => Role::Scale,
            ("Mul", _) => Role::Frozen("table that multiplies"),
            ("Concat", _) => Role::Position,
            // A token or a bias stands in for some places; a single number fills them.
            ("Where", 1 | 2) if !is_one_number(g, v) => Role::Position,
            ("Where", _) => Role::Frozen("mask"),
            ("Div" | "Pow" | "Clip" | "Max" | "Min" | "Equal" | "Greater" | "Less", _) => {
                Role::Frozen("constant of a formula")
            }
            _ => Role::Frozen("no trained role"),
        }
    }

    /// The role of what a node makes of a constant: the first that trains, of all readers of its results.
    fn onward(&self, node: NodeId, depth: usize) -> Role {
        let g = self.g;
        let mut found = UNUSED;
        if depth == 0 {
            return found;
        }
        if let Some(known) = self.onward.borrow().get(&(node, depth)) {
            return *known;
        }
        for (r, (n, i)) in g.results(node).flat_map(|r| g.uses_in_order(r).into_iter().map(move |u| (r, u))) {
            found = self.of_use(n, i, r, depth - 1);
            if found.trains() || found == Role::Statistic {
                break;
            }
        }
        self.onward.borrow_mut().insert((node, depth), found);
        found
    }
}

fn is_unit(t: &crate::ir::Tensor) -> bool {
    t.to_f64().is_ok_and(|values| values.iter().all(|v| *v == 1.0))
}

/// Functions through which a parameter is kept positive, within bounds or to what integers can say.
fn reparametrises(name: &str) -> bool {
    matches!(
        name,
        "Exp" | "Neg" | "Softplus" | "Sigmoid" | "Tanh" | "Clip" | "DequantizeLinear" | "Quantize" | "FakeQuantize"
    )
}

/// Do the same few numbers fill a constant, as coordinates fill the table of a grid? A trained parameter of several elements has
/// about as many different values as elements.
fn is_grid(g: &Graph, v: ValueId) -> bool {
    let Some(mut values) = values_of(g, v).filter(|all| all.len() >= 8) else { return false };
    values.sort_unstable_by(f64::total_cmp);
    let all = values.len();
    values.dedup();
    (2..=all / 2).contains(&values.len())
}

/// Is the product an angle? A value of which both the sine and the cosine are taken is a phase, and its factor is a frequency.
fn feeds_both_sin_and_cos(g: &Graph, node: NodeId) -> bool {
    ["Sin", "Cos"].iter().all(|name| g.uses(g.result(node, 0)).any(|(n, _)| g.is_op(n, name)))
}

/// Does a constant hide nothing from any head: zeros, of one head's extent? Before a softmax these are a mask that an exporter
/// made of an input without padding. A learned bias may be all zeros before training too, but each head has its own.
fn is_empty_mask(g: &Graph, v: ValueId) -> bool {
    let is_matrix = |t: &TensorType| t.rank() > 1 && t.shape.iter().rev().nth(2).is_none_or(|heads| heads.is_one());
    g.tensor_type(v).is_some_and(|t| is_matrix(&t)) && values_of(g, v).is_some_and(|all| all.iter().all(|x| *x == 0.0))
}

/// Does one number fill a constant?
fn is_one_number(g: &Graph, v: ValueId) -> bool {
    values_of(g, v).is_none_or(|all| all.iter().all(|x| *x == all[0]))
}

/// The elements of a constant, perhaps in another layout.
fn values_of(g: &Graph, v: ValueId) -> Option<Vec<f64>> {
    g.initializer(constant_origin(g, v)?)?.to_f64().ok()
}

/// Does a softmax read the node's result, perhaps in another layout (windows beside heads)? Then it adds to scores.
fn feeds_softmax(g: &Graph, node: NodeId, depth: usize) -> bool {
    let mut seen = HashSet::from([node]);
    let mut open = vec![node];
    for _ in 0..=depth {
        let readers: Vec<(NodeId, usize)> = open.iter().flat_map(|n| g.results(*n)).flat_map(|r| g.uses(r)).collect();
        if readers.iter().any(|(n, _)| g.is_op(*n, "Softmax")) {
            return true;
        }
        let layout = |(n, operand): &(NodeId, usize)| *operand == 0 && g.op(*n).is_some_and(passes_through);
        open = readers.into_iter().filter(layout).map(|(n, _)| n).filter(|n| seen.insert(*n)).collect();
    }
    false
}

/// Has the tensor at most one extent above 1? A scale or bias per channel has, whatever its rank.
fn per_channel(g: &Graph, v: ValueId) -> bool {
    g.tensor_type(v).is_some_and(|t| t.shape.iter().filter(|d| !d.is_one()).count() <= 1)
}

/// Is this a table that a formula made: a mask, distances, or sines and cosines?
fn table(values: &[f64], dims: &[i64], role: Role) -> Option<&'static str> {
    if is_mask(values) {
        return Some("mask");
    }
    if role != Role::Position || values.len() < 8 {
        return None;
    }
    if are_distances(values, dims) {
        return Some("table of distances");
    }
    // sin² + cos² = 1 for pairs: interleaved, or in halves of the last axis (or of each of its quarters).
    let width = dims.last().copied().unwrap_or(1).max(1) as usize;
    let bounded = values.iter().all(|v| v.abs() <= 1.0 + 1e-6);
    if !bounded || !width.is_multiple_of(2) {
        return None;
    }
    let unit = |a: f64, b: f64| (a * a + b * b - 1.0).abs() < 1e-4;
    let rows: Vec<&[f64]> = values.chunks_exact(width).collect();
    let paired = |row: &[f64], distance: usize| {
        let pairs = row.chunks_exact(2 * distance).flat_map(|c| c[..distance].iter().zip(&c[distance..]));
        pairs.clone().count() * 2 == row.len() && pairs.clone().all(|(a, b)| unit(*a, *b))
    };
    // The first row may be a class token's zeros.
    let mut distances = vec![1, width / 2];
    if width.is_multiple_of(4) {
        distances.push(width / 4);
    }
    let zero_row = |row: &[f64]| row.iter().all(|v| *v == 0.0);
    let made = distances
        .into_iter()
        .any(|d| d > 0 && rows.iter().all(|r| zero_row(r) || paired(r, d)) && !rows.iter().all(|r| zero_row(r)));
    made.then_some("table of sines and cosines")
}

/// Do the values hide places from a softmax: each is 0 or far below what a score is, or some are below any learned number?
fn is_mask(values: &[f64]) -> bool {
    // Swin hides with -100; exp(-64) is below half a unit in the last place of a float64 beside 1.
    let hides = |v: &f64| *v <= -64.0;
    let only = values.contains(&0.0) && values.iter().any(hides) && values.iter().all(|v| *v == 0.0 || hides(v));
    only || values.iter().any(|v| *v <= -1e4)
}

/// Does every row fall evenly from a 0 at one place, as the linear biases of attention do?
fn are_distances(values: &[f64], dims: &[i64]) -> bool {
    let width = dims.last().copied().unwrap_or(1).max(1) as usize;
    let linear = |row: &[f64]| {
        let step = (row[1] - row[0]).abs();
        let even = |w: &[f64]| ((w[1] - w[0]).abs() - step).abs() <= 1e-3 * step;
        let turns = row.windows(3).filter(|w| (w[2] - w[1] > 0.0) != (w[1] - w[0] > 0.0)).count();
        let highest = row.iter().fold(f64::NEG_INFINITY, |m, v| m.max(*v));
        step > 0.0 && highest == 0.0 && row.windows(2).all(even) && turns <= 1
    };
    width >= 4 && values.chunks_exact(width).all(linear)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op, Tensor, TensorType, ValueType};

    /// A graph that is written operator by operator; every result is float32 of the rank that is given.
    struct Net(Graph);

    impl Net {
        fn input(&mut self, dims: &[i64]) -> ValueId {
            self.0.add_input("x", TensorType::fixed(DType::F32, dims).into(), None)
        }

        fn floats(&mut self, name: &str, dims: &[i64]) -> ValueId {
            let n = dims.iter().product::<i64>() as usize;
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() * 1.5).collect();
            self.0.add_initializer(name, Tensor::f32s(dims, &values), false)
        }

        fn ints(&mut self, values: &[i64]) -> ValueId {
            self.0.add_initializer("", Tensor::i64s(&[values.len() as i64], values), false)
        }

        fn op(&mut self, name: &str, operands: &[ValueId], dims: &[i64]) -> ValueId {
            let operands: Vec<Option<ValueId>> = operands.iter().copied().map(Some).collect();
            let node = self.0.add_op("", Op::new(name, Attrs::new()), &operands);
            self.0.push_result(node, "", ValueType::from(TensorType::fixed(DType::F32, dims)))
        }

        fn role(&self, v: ValueId) -> Role {
            initializer_roles(&self.0).into_iter().find(|(w, _)| *w == v).map(|(_, r)| r).unwrap()
        }
    }

    #[test]
    fn what_is_added_to_scores_is_a_mask_by_its_values() {
        let heads: &[i64] = &[2, 4, 4];
        let row = |f: &dyn Fn(i64) -> f32| (0..32).map(f).collect::<Vec<_>>();
        let (hidden, learned) = (|low: f32| row(&|i| if i % 4 > i / 4 % 4 { low } else { 0.0 }), row(&|i| (i as f32).sin()));
        let distances = row(&|i| -0.5 * (i % 4 - i / 4 % 4).abs() as f32);
        let infinite = row(&|i| if i % 4 == 0 { f32::NEG_INFINITY } else { i as f32 });
        for (values, dims, role) in [
            (hidden(-100.0), heads, Role::Frozen("mask")),
            (hidden(f32::NEG_INFINITY), heads, Role::Frozen("mask")),
            (infinite, heads, Role::Frozen("mask")),
            (distances, heads, Role::Frozen("table of distances")),
            (vec![0.0; 16], &[1, 4, 4], Role::Frozen("mask")),
            (vec![0.0; 32], heads, Role::Position),
            (learned.clone(), heads, Role::Position),
            (vec![0.0; 4], &[4], Role::Bias),
        ] {
            let mut n = Net(Graph::default());
            let (x, target) = (n.input(heads), n.ints(&[8, 4]));
            let added = n.0.add_initializer("added", Tensor::f32s(dims, &values), false);
            let sum = n.op("Add", &[x, added], heads);
            let flat = n.op("Reshape", &[sum, target], &[8, 4]);
            let y = n.op("Softmax", &[flat], &[8, 4]);
            n.0.add_output(y, None);
            assert_eq!(n.role(added), role, "{values:?}");
        }
    }

    #[test]
    fn what_stands_in_for_some_places_trains_unless_it_is_a_number() {
        for (values, role) in [([0.5f32, -0.5, 0.25, 1.0], Role::Position), ([0.0; 4], Role::Frozen("mask"))] {
            let mut n = Net(Graph::default());
            let x = n.input(&[3, 4]);
            let condition = n.0.add_initializer("", Tensor::bools(&[3, 1], &[true, false, true]), false);
            let token = n.0.add_initializer("token", Tensor::f32s(&[4], &values), false);
            let y = n.op("Where", &[condition, token, x], &[3, 4]);
            n.0.add_output(y, None);
            assert_eq!(n.role(token), role);
        }
    }

    #[test]
    fn a_table_of_relative_positions_trains_whichever_operator_reads_it() {
        for (read, trains) in [("Gather", true), ("GatherND", true), ("Shape", false)] {
            let mut n = Net(Graph::default());
            let (x, table, at) = (n.input(&[3, 4]), n.floats("table", &[5, 4]), n.ints(&[0, 2, 4]));
            let rows = n.op(read, &[table, at], &[3, 4]);
            let y = n.op("Add", &[x, rows], &[3, 4]);
            n.0.add_output(y, None);
            assert_eq!(n.role(table).trains(), trains, "{read}");
        }
    }

    #[test]
    fn what_a_weight_is_computed_from_trains() {
        // A direction over its length times another length, and a rate that is kept positive.
        let mut n = Net(Graph::default());
        let (x, v, length, rate) =
            (n.input(&[3, 4]), n.floats("v", &[4, 4]), n.floats("length", &[4, 4]), n.floats("rate", &[4]));
        let unit = n.op("Div", &[v, length], &[4, 4]);
        let y = n.op("MatMul", &[x, unit], &[3, 4]);
        let positive = n.op("Exp", &[rate], &[4]);
        let z = n.op("Mul", &[y, positive], &[3, 4]);
        n.0.add_output(z, None);
        assert_eq!((n.role(v), n.role(length), n.role(rate)), (Role::Weight, Role::Weight, Role::Scale));
    }

    #[test]
    fn coordinates_and_frequencies_are_no_parameters() {
        let mut n = Net(Graph::default());
        let grid: Vec<f32> = (0..16).map(|i| (i % 4) as f32 / 3.0).collect();
        let (x, frequencies, w) = (n.input(&[3, 1]), n.floats("frequencies", &[4]), n.floats("w", &[1, 4]));
        let grid = n.0.add_initializer("grid", Tensor::f32s(&[16, 1], &grid), false);
        let learned = n.floats("learned", &[16, 1]);
        let phase = n.op("Mul", &[x, frequencies], &[3, 4]);
        let results = [
            n.op("MatMul", &[grid, w], &[16, 4]),
            n.op("MatMul", &[learned, w], &[16, 4]),
            n.op("Sin", &[phase], &[3, 4]),
            n.op("Cos", &[phase], &[3, 4]),
        ];
        results.into_iter().for_each(|v| n.0.add_output(v, None));
        assert_eq!((n.role(grid), n.role(learned)), (Role::Frozen("table of coordinates"), Role::Weight));
        assert_eq!((n.role(frequencies), n.role(w)), (Role::Frozen("frequencies"), Role::Weight));
    }

    #[test]
    fn a_bias_in_parts_is_a_bias_and_what_fills_a_state_is_a_constant() {
        let mut n = Net(Graph::default());
        let (x, bias, one) = (n.input(&[3, 4]), n.floats("bias", &[8]), n.floats("one", &[1]));
        let (start, end, shape) = (n.ints(&[0]), n.ints(&[4]), n.ints(&[3, 4]));
        let part = n.op("Slice", &[bias, start, end], &[4]);
        let state = n.op("Expand", &[one, shape], &[3, 4]);
        let sum = n.op("Add", &[x, part], &[3, 4]);
        let y = n.op("Add", &[sum, state], &[3, 4]);
        n.0.add_output(y, None);
        assert_eq!((n.role(bias), n.role(one)), (Role::Bias, Role::Frozen("scalar constant")));
    }

    #[test]
    fn a_tensor_without_elements_does_not_train() {
        let mut n = Net(Graph::default());
        let (x, none) = (n.input(&[3, 4]), n.floats("none", &[3, 0]));
        let y = n.op("Concat", &[x, none], &[3, 4]);
        n.0.add_output(y, None);
        assert_eq!(n.role(none), Role::Frozen("no elements"));
    }
}

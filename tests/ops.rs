//! Every operator rule: its shapes and types against what ONNX Runtime computes, its pullback against central differences.
//!
//! A sample is built in float64 where ONNX Runtime has the kernels, else in float32. It is checked with all extents known,
//! with a symbolic batch, and with all extents of the first operand, and of all operands, symbolic. What is written as other
//! operators is checked in that form against differences of the operator itself.
//!
//! Each rule is a test by its name: `cargo test ops::Conv`.
#![allow(clippy::unwrap_used, unreachable_pub)]

// Of what the tests share some is for the others only.
#[allow(dead_code)]
mod common;

use crate::common::{Random, emit, floats, open};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::Builder;
use ancre_passes::ops::{Derivative, OpRule, Sample, SampleOperand, rules};
use ancre_passes::refusal::Applied;
use ancre_passes::target::{CPU, CPU_BLOCKS, CUDA, Target, WASM};
use ancre_passes::transform::block_convolutions::block_convolutions;
use ancre_passes::transform::{differentiate, eliminate, legalize, lower_abstract};
use ancre_passes::verify;
use ancre_rewrite::engine::ort::OrtSession;
use ancre_rewrite::engine::{Session, Tensors};
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;

/// Which extents are symbols.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Extents {
    Known,
    /// The first axis of the first operand, and of those it is an element-wise partner of.
    Batch,
    /// The first operand's. A rule may refuse from here on; what it does build must be right.
    First,
    /// Every operand's.
    All,
}

/// Step of the central difference and how far, relative to the largest derivative (at least 1), it may lie from the pullback.
/// Samples keep more than a step away from kinks. The float64 difference errs by the third derivative times 1e-8 / 6; the
/// float32 one by 1e-4 / 6 of it and by rounding, about 1e-7 / 1e-2 for each element of a result.
fn step_and_tolerance(dtype: DType) -> (f64, f64) {
    if dtype == DType::F64 { (1e-4, 2e-5) } else { (1e-2, 5e-3) }
}

/// Coordinates of one operand that are checked one by one; random directions check the others.
const COORDINATES: usize = 48;

/// Computes in float32 whatever its operands' type, or says only when it runs that float64 is beyond it.
const SINGLE_INSIDE: [&str; 3] = ["GroupNormalization", "LSTM", "GRU"];

/// Samples that cannot be differentiated with a symbolic batch: one reads a batch of unknown length backwards.
const FIXED_BATCH: [(&str, usize); 1] = [("Slice", 5)];

/// Without a kernel in the runtime: what it is written as runs in its place. Its numbers are compared in `opset`.
const NO_KERNEL: [&str; 1] = ["SwiGLU"];

/// The runtime has no kernel and writes it as other operators only where shapes are known.
const INLINED: [&str; 1] = ["CausalConvWithState"];

/// Rules without samples: what no file has, what reads a sequence, and names that no kernel of the runtime goes by.
const NO_SAMPLES: [&str; 24] = [
    // Samples hold floats; tests/qat.rs runs these.
    "ancre.FakeQuantize",
    "ancre.Quantize",
    "QLinearConv",
    "com.microsoft.QLinearConv",
    "QLinearMatMul",
    "com.microsoft.QGemm",
    "com.microsoft.MatMulIntegerToFloat",
    "com.microsoft.DynamicQuantizeMatMul",
    "com.microsoft.QLinearAdd",
    "com.microsoft.QLinearMul",
    "com.microsoft.QLinearAveragePool",
    "com.microsoft.QLinearGlobalAveragePool",
    "com.microsoft.QLinearLeakyRelu",
    "com.microsoft.QLinearSigmoid",
    "com.microsoft.QLinearSoftmax",
    "com.microsoft.QLinearReduceMean",
    "com.microsoft.QLinearConcat",
    "com.microsoft.QLinearWhere",
    "ancre.Route",
    "ancre.RouteCotangent",
    "ancre.RouteWeightsCotangent",
    "SequenceAt",
    "com.microsoft.LayerNormalization",
    "com.microsoft.SimplifiedLayerNormalization",
];

struct Fed {
    value: ValueId,
    name: String,
    dims: Vec<usize>,
    values: Vec<f64>,
}

struct Built {
    graph: Graph,
    fed: Vec<Fed>,
    results: Vec<ValueId>,
    dtype: DType,
}

fn fixed(dims: &[i64]) -> Vec<usize> {
    dims.iter().map(|d| *d as usize).collect()
}

/// Symbols are named after the extent they stand for.
fn extent_of(symbol: &str) -> Option<i64> {
    symbol.strip_prefix('e')?.parse().ok()
}

fn declared(dims: &[i64], first: Option<&[i64]>, extents: Extents, dtype: DType) -> TensorType {
    let mut ty = TensorType::fixed(dtype, dims);
    for (axis, extent) in dims.iter().enumerate() {
        let partner = first.is_none_or(|f| dims.len() == f.len() && dims.first() == f.first());
        let symbolic = match extents {
            Extents::Known => false,
            Extents::Batch => axis == 0 && partner,
            Extents::First => first.is_none(),
            Extents::All => true,
        };
        if symbolic && *extent > 1 {
            ty.shape[axis] = Dim::symbol(&format!("e{extent}"));
        }
    }
    ty
}

fn build(sample: &Sample, dtype: DType, extents: Extents) -> Result<Built, String> {
    let mut graph = Graph::default();
    graph.opsets.insert(String::new(), sample.opset);
    if !["", "ancre"].contains(&sample.op.domain.as_str()) {
        graph.opsets.insert(sample.op.domain.clone(), 1);
    }
    let mut random = Random(7);
    let mut fed = Vec::new();
    let mut operands = Vec::new();
    let mut first: Option<Vec<i64>> = None;
    for (i, operand) in sample.operands.iter().enumerate() {
        let name = format!("x{i}");
        let mut constant = |t: Tensor| Some(graph.add_initializer(&name, t, false));
        let wide = |values: &[f32]| values.iter().map(|v| *v as f64).collect::<Vec<f64>>();
        let (dims, values) = match operand {
            SampleOperand::Missing => {
                operands.push(None);
                continue;
            }
            SampleOperand::Ints { dims, values } => {
                operands.push(constant(Tensor::i64s(dims, values)));
                continue;
            }
            SampleOperand::Ints32 { dims, values } => {
                let bytes = values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect();
                operands.push(constant(Tensor::from_bytes(DType::I32, dims, bytes)));
                continue;
            }
            SampleOperand::Bytes { dims, values } => {
                operands.push(constant(Tensor::from_bytes(DType::U8, dims, values.clone())));
                continue;
            }
            SampleOperand::Bools { dims, values } => {
                operands.push(constant(Tensor::bools(dims, values)));
                continue;
            }
            SampleOperand::FloatConstant { dims, values } => {
                operands.push(constant(Tensor::floats(dtype, dims, &wide(values))));
                continue;
            }
            SampleOperand::Values { dims, values } => (dims, wide(values)),
            SampleOperand::Floats { dims, low, high } => {
                let count = dims.iter().product::<i64>();
                let value = |random: &mut Random| (low + (high - low) * random.unit() as f32) as f64;
                (dims, (0..count).map(|_| value(&mut random)).collect())
            }
        };
        let value = graph.add_input(&name, declared(dims, first.as_deref(), extents, dtype).into(), None);
        first.get_or_insert_with(|| dims.clone());
        fed.push(Fed { value, name, dims: fixed(dims), values });
        operands.push(Some(value));
    }
    let mut results = Builder::new(&mut graph, "y")
        .node(sample.op.clone(), &operands)
        .map_err(|e| format!("the shape rule fails: {e}"))?;
    results.truncate(sample.results);
    Ok(Built { graph, fed, results, dtype })
}

impl Built {
    fn names(&self) -> Vec<String> {
        self.results.iter().map(|v| self.graph.name(*v).to_string()).collect()
    }

    fn feeds(&self) -> Tensors {
        self.fed.iter().map(|f| (f.name.clone(), floats(self.dtype, &f.dims, &f.values))).collect()
    }

    fn forward(&self) -> Result<Vec<u8>, String> {
        let mut g = self.graph.clone();
        self.results.iter().for_each(|v| g.add_output(*v, None));
        let lacking = |n| g.op(n).is_some_and(|op: &Op| NO_KERNEL.contains(&op.name.as_str()));
        if g.nodes().any(lacking) {
            legalize::to_opset(&mut g, legalize::TARGET, &mut Applied::default()).map_err(|e| e.to_string())?;
        }
        finish(g, &CPU, verify::Stage::Open)
    }

    /// The gradient of Σ ⟨ct, result⟩, with the cotangents as inputs; also the names of the gradients, `None` where zero.
    fn gradient(&self, target: &'static Target, decomposes: bool) -> Result<(Vec<u8>, Vec<Option<String>>), String> {
        let mut g = self.graph.clone();
        // The values that a decomposition puts in the place of results are found as outputs.
        self.results.iter().for_each(|v| g.add_output(*v, None));
        if decomposes {
            legalize::decompose_contrib(&mut g, &mut Applied::default());
            legalize::to_opset(&mut g, legalize::TARGET, &mut Applied::default()).map_err(|e| e.to_string())?;
        }
        let results: Vec<ValueId> = g.outputs().iter().map(|o| o.value).collect();
        let mut terms = Vec::new();
        for (i, v) in results.into_iter().enumerate() {
            if !g.is_float(v) {
                continue;
            }
            let ty = g.tensor_type(v).ok_or("a result has no type")?;
            let ct = g.add_input(&format!("ct{i}"), ty.into(), None);
            let mut b = Builder::new(&mut g, "loss");
            let product = b.mul(v, ct).and_then(|p| b.reduce_all("ReduceSum", p));
            terms.push(product.map_err(|e| e.to_string())?);
        }
        let loss = Builder::new(&mut g, "loss").sum(&terms).map_err(|e| e.to_string())?;
        let wrt: Vec<ValueId> = self.fed.iter().map(|f| f.value).collect();
        let gradients = differentiate(&mut g, target, loss, &wrt).map_err(|e| format!("the pullback fails: {e}"))?;
        let mut names = Vec::new();
        for f in &self.fed {
            let Some(ct) = gradients.get(&f.value) else {
                names.push(None);
                continue;
            };
            // An output of its own, even where two operands have one cotangent.
            let v = Builder::new(&mut g, "gradient").op_with("Identity", Attrs::new(), &[*ct]).map_err(|e| e.to_string())?;
            g.add_output(v, None);
            names.push(Some(g.name(v).to_string()));
        }
        // The sample's own operator need not exist in its graph's operator set in the form that the rule reads.
        let stage = if g.opsets[""] < 18 { verify::Stage::Open } else { verify::Stage::Legal };
        Ok((finish(g, target, stage)?, names))
    }

    /// Checks the results' types; hands back the results.
    fn check_types(&self, session: &mut OrtSession) -> Result<Tensors, String> {
        let got = session.run(&self.feeds()).map_err(|e| format!("running fails: {e}"))?;
        for (v, name) in self.results.iter().zip(self.names()) {
            let want = self.graph.tensor_type(*v).ok_or("a result has no type")?;
            let t = &got[&name];
            let fits = t.dtype() == want.dtype
                && t.shape().len() == want.rank()
                && t.shape().iter().zip(&want.shape).all(|(have, d)| d.eval(&extent_of).is_none_or(|d| d == *have as i64));
            if !fits {
                return Err(format!("`{name}` is {}{:?}, the rule says {want}", t.dtype(), t.shape()));
            }
        }
        Ok(got)
    }

    /// Checks the gradient as each target has it.
    fn check_gradient(&self, forward: &mut OrtSession, results: &Tensors, decomposes: bool) -> Result<(), String> {
        let mut checked: Vec<Vec<u8>> = Vec::new();
        for target in [&CPU, &CUDA, &WASM] {
            let (model, names) = self.gradient(target, decomposes)?;
            if !checked.contains(&model) {
                self.check_gradient_of(&model, &names, forward, results)
                    .map_err(|e| format!("{e} (target {})", target.name))?;
                checked.push(model);
            }
        }
        Ok(())
    }

    fn check_gradient_of(
        &self,
        model: &[u8],
        names: &[Option<String>],
        forward: &mut OrtSession,
        results: &Tensors,
    ) -> Result<(), String> {
        let mut session = open(model).map_err(|e| format!("gradient: {e}"))?;
        let mut random = Random(11);
        let cotangents: Vec<(usize, Vec<f64>)> = (0..self.results.len())
            .filter(|i| self.graph.is_float(self.results[*i]))
            .map(|i| (i, random.normals(results[i].len())))
            .collect();
        let mut feeds = self.feeds();
        for (i, ct) in &cotangents {
            feeds.insert(format!("ct{i}"), floats(results[*i].dtype(), results[*i].shape(), ct));
        }
        let gradients = session.run(&feeds).map_err(|e| format!("running the gradient fails: {e}"))?;
        let (step, tolerance) = step_and_tolerance(self.dtype);
        let mut along = |which: usize, direction: &[f64]| -> Result<f64, String> {
            let mut sides = Vec::new();
            for sign in [step, -step] {
                let f = &self.fed[which];
                let moved: Vec<f64> = f.values.iter().zip(direction).map(|(x, d)| x + sign * d).collect();
                let mut feeds = self.feeds();
                feeds.insert(f.name.clone(), floats(self.dtype, &f.dims, &moved));
                sides.push(forward.run(&feeds).map_err(|e| e.to_string())?);
            }
            let change = cotangents.iter().map(|(i, ct)| {
                let (a, b) = (sides[0][*i].to_f64(), sides[1][*i].to_f64());
                ct.iter().zip(a.iter().zip(&b)).map(|(ct, (a, b))| ct * (a - b)).sum::<f64>()
            });
            Ok(change.sum::<f64>() / (2.0 * step))
        };
        for (which, (f, name)) in self.fed.iter().zip(names).enumerate() {
            let got = match name {
                Some(name) => {
                    let t = &gradients[name];
                    if t.shape() != f.dims {
                        return Err(format!("the gradient of {} has shape {:?}", f.name, t.shape()));
                    }
                    t.to_f64()
                }
                None => vec![0.0; f.values.len()],
            };
            let n = got.len();
            let largest = got.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            for k in 0..n.min(COORDINATES) {
                let at = if n <= COORDINATES { k } else { k * n / COORDINATES };
                let mut direction = vec![0.0; n];
                direction[at] = 1.0;
                let want = along(which, &direction)?;
                let error = (want - got[at]).abs() / largest;
                if error.is_nan() || error > tolerance {
                    return Err(format!(
                        "gradient of {}[{at}]: {} where differences give {want} ({:?})",
                        f.name, got[at], self.dtype
                    ));
                }
            }
            if n > COORDINATES {
                for _ in 0..2 {
                    // Small enough for every coordinate to stay within a step.
                    let direction: Vec<f64> = (0..n).map(|_| 2.0 * random.unit() - 1.0).collect();
                    let want = along(which, &direction)?;
                    let have: f64 = got.iter().zip(&direction).map(|(g, d)| g * d).sum();
                    let error = (want - have).abs() / (largest * (n as f64).sqrt());
                    if error.is_nan() || error > tolerance {
                        return Err(format!(
                            "gradient of {} in a random direction: {have} where differences give {want}",
                            f.name
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Lowers what is abstract, verifies and encodes.
fn finish(mut g: Graph, target: &'static Target, stage: verify::Stage) -> Result<Vec<u8>, String> {
    lower_abstract::lower_abstract(&mut g, target).map_err(|e| e.to_string())?;
    eliminate::eliminate_dead(&mut g, |_, _| false);
    block_convolutions(&mut g, target).map_err(|e| e.to_string())?;
    verify::verify(&g, stage).map_err(|e| e.join("; "))?;
    Ok(emit(&g))
}

/// Channels in blocks, which are float32 only, against the plain operators: results and gradients.
fn check_blocks(sample: &Sample, extents: Extents) -> Result<(), String> {
    let built = build(sample, DType::F32, extents)?;
    let Ok((plain, names)) = built.gradient(&CPU, false) else { return Ok(()) };
    let (blocks, _) = built.gradient(&CPU_BLOCKS, false)?;
    if plain == blocks {
        return Ok(());
    }
    let mut random = Random(12);
    let mut feeds = built.feeds();
    let results = open(&built.forward()?)?.run(&feeds).map_err(|e| e.to_string())?;
    for (i, name) in built.names().iter().enumerate() {
        let shape = results[name].shape();
        feeds.insert(format!("ct{i}"), floats(DType::F32, shape, &random.normals(shape.iter().product())));
    }
    let run = |model: &[u8]| open(model)?.run(&feeds).map_err(|e| e.to_string());
    let (want, got) = (run(&plain)?, run(&blocks)?);
    for name in built.names().iter().chain(names.iter().flatten()) {
        let (want, got) = (want[name].to_f64(), got[name].to_f64());
        let largest = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        let error = want.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
        if want.len() != got.len() || error.is_nan() || error > 1e-5 {
            return Err(format!("`{name}` in blocks is off by {error:.2e}"));
        }
    }
    Ok(())
}

fn may_refuse(extents: Extents) -> bool {
    matches!(extents, Extents::First | Extents::All)
}

fn check(rule: &dyn OpRule, sample: &Sample, extents: Extents) -> Result<(), String> {
    // Float64 where possible; attributes and constants may insist on float32, and kernels be missing.
    let wide = build(sample, DType::F64, extents).and_then(|b| {
        let narrow = b.results.iter().any(|v| b.graph.is_float(*v) && b.graph.value(*v).ty.dtype != Some(DType::F64));
        if narrow || SINGLE_INSIDE.contains(&rule.name()) {
            return Err("it computes in float32".to_string());
        }
        Ok((open(&b.forward()?)?, b))
    });
    let (mut session, built) = match wide {
        Ok(ready) => ready,
        Err(_) => {
            let built = match build(sample, DType::F32, extents) {
                Err(e) if may_refuse(extents) && e.starts_with("the shape rule fails") => {
                    return Ok(());
                }
                other => other?,
            };
            (open(&built.forward()?)?, built)
        }
    };
    let results = built.check_types(&mut session)?;
    let decomposes = matches!(rule.derivative(), Derivative::Decompose(_));
    if !sample.differentiate || !(decomposes || rule.derivative() == Derivative::Pullback) {
        return Ok(());
    }
    // Other processors' builds of the runtime have no blocks.
    if cfg!(target_arch = "x86_64") && !decomposes && !may_refuse(extents) {
        check_blocks(sample, extents)?;
    }
    let mut compared = built.check_gradient(&mut session, &results, decomposes).map(|()| built.dtype);
    if built.dtype == DType::F64 && compared.as_ref().is_err_and(|e| e.contains("cannot do") || e.contains("cannot load")) {
        // The gradient's operators have no float64 kernel.
        let built = build(sample, DType::F32, extents)?;
        let mut session = open(&built.forward()?)?;
        let results = built.check_types(&mut session)?;
        compared = built.check_gradient(&mut session, &results, decomposes).map(|()| DType::F32);
    }
    match compared {
        // What the operator set of an old model cannot say.
        Err(e) if sample.opset < 18 && e.starts_with("gradient: ort cannot") => Ok(()),
        Err(e) if may_refuse(extents) && e.starts_with("the pullback fails") => Ok(()),
        other => other.map(|_| ()),
    }
}

fn name_of(rule: &dyn OpRule) -> String {
    if rule.domain().is_empty() { rule.name().to_string() } else { format!("{}.{}", rule.domain(), rule.name()) }
}

/// All samples of a rule, their extents known and symbolic.
fn check_rule(rule: &dyn OpRule) -> Result<(), Failed> {
    let mut failures = Vec::new();
    for (i, sample) in rule.samples().iter().enumerate() {
        for extents in [Extents::Known, Extents::Batch, Extents::First, Extents::All] {
            let fixed = extents == Extents::Batch && FIXED_BATCH.contains(&(rule.name(), i));
            if fixed || (extents == Extents::All && INLINED.contains(&rule.name())) {
                continue;
            }
            if let Err(e) = check(rule, sample, extents) {
                failures.push(format!("sample {i} (opset {}), {extents:?}: {e}", sample.opset));
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n").into()) }
}

fn rules_have_samples() -> Result<(), Failed> {
    let without: Vec<String> = rules().iter().filter(|r| r.samples().is_empty()).map(|r| name_of(*r)).collect();
    let surprising: Vec<&String> = without.iter().filter(|name| !NO_SAMPLES.contains(&name.as_str())).collect();
    if surprising.is_empty() && without.len() == NO_SAMPLES.len() { Ok(()) } else { Err(format!("{without:?}").into()) }
}

fn an_operator_without_a_rule_has_none() -> Result<(), Failed> {
    let found = ancre_passes::ops::rule(&Op::new("NoSuchOperator", Attrs::new()));
    found.map_or(Ok(()), |r| Err(r.name().into()))
}

fn main() -> ExitCode {
    let mut trials = vec![
        Trial::test("ops::rules_have_samples", rules_have_samples),
        Trial::test("ops::an_operator_without_a_rule_has_none", an_operator_without_a_rule_has_none),
    ];
    let sampled = rules().iter().filter(|r| !r.samples().is_empty());
    trials.extend(sampled.map(|r| Trial::test(format!("ops::{}", name_of(*r)), || check_rule(*r))));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

//! What is stated of the axes of every operator, in ONNX Runtime: along a free axis, operands in reverse order give the results in
//! reverse order, and another first part of an operand changes no other part of a result.

use crate::common::{Random, emit, floats, open};
use ancre_passes::ir::{Attrs, DType, Graph, Op, Tensor, TensorType};
use ancre_passes::ops::build::Builder;
use ancre_passes::ops::eval::{Array, Element};
use ancre_passes::ops::{Along, Axes, Class, Infer, OpRule, Sample, SampleOperand, axes, rules};
use ancre_rewrite::engine::ort::OrtSession;
use ancre_rewrite::engine::{Session, Tensors};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Fed,
    Float,
    I64,
    I32,
    U8,
    Bool,
}

#[derive(Clone)]
struct Operand {
    kind: Kind,
    dims: Vec<i64>,
    values: Vec<f64>,
}

fn operands(sample: &Sample) -> Vec<Option<Operand>> {
    let mut random = Random(7);
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect();
    let whole = |values: &[i64]| values.iter().map(|v| *v as f64).collect();
    let one = |operand: &SampleOperand| {
        let (kind, dims, values) = match operand {
            SampleOperand::Missing => return None,
            SampleOperand::Floats { dims, low, high } => {
                let n = dims.iter().product::<i64>();
                let value = |_| (low + (high - low) * random.unit() as f32) as f64;
                (Kind::Fed, dims, (0..n).map(value).collect())
            }
            SampleOperand::Values { dims, values } => (Kind::Fed, dims, wide(values)),
            SampleOperand::FloatConstant { dims, values } => (Kind::Float, dims, wide(values)),
            SampleOperand::Ints { dims, values } => (Kind::I64, dims, whole(values)),
            SampleOperand::Ints32 { dims, values } => (Kind::I32, dims, whole(values)),
            SampleOperand::Bytes { dims, values } => (Kind::U8, dims, values.iter().map(|v| f64::from(*v)).collect()),
            SampleOperand::Bools { dims, values } => (Kind::Bool, dims, values.iter().map(|v| f64::from(*v)).collect()),
        };
        Some(Operand { kind, dims: dims.clone(), values })
    };
    sample.operands.iter().map(one).collect()
}

fn whole(values: &[f64]) -> Vec<i64> {
    values.iter().map(|v| *v as i64).collect()
}

fn stated(sample: &Sample, operands: &[Option<Operand>]) -> Option<Axes> {
    let types: Vec<Option<TensorType>> =
        operands.iter().map(|o| o.as_ref().map(|o| TensorType::fixed(DType::F32, &o.dims))).collect();
    let array = |i: usize| {
        let constant = operands.get(i)?.as_ref().filter(|o| matches!(o.kind, Kind::I64 | Kind::I32))?;
        let elements = whole(&constant.values).into_iter().map(Element::Int).collect();
        Some(Array { dtype: DType::I64, dims: constant.dims.clone(), elements })
    };
    let present = |i: usize| operands.get(i).is_some_and(Option::is_some);
    axes(&Infer { op: &sample.op, types: &types, array: &array, present: &present }, sample.opset, None)
}

/// One application with its constants; what is fed may change from run to run.
struct Application {
    session: OrtSession,
    names: Vec<String>,
}

/// Extents and elements of a result.
type Computed = (Vec<usize>, Vec<f64>);

impl Application {
    fn new(sample: &Sample, operands: &[Option<Operand>]) -> Result<Application, String> {
        let mut g = Graph::default();
        g.opsets.insert(String::new(), sample.opset);
        if !sample.op.domain.is_empty() {
            g.opsets.insert(sample.op.domain.clone(), 1);
        }
        let mut values = Vec::new();
        for (i, operand) in operands.iter().enumerate() {
            let name = format!("x{i}");
            values.push(operand.as_ref().map(|o| match o.kind {
                Kind::Fed => g.add_input(&name, TensorType::fixed(DType::F32, &o.dims).into(), None),
                Kind::Float => g.add_initializer(&name, Tensor::floats(DType::F32, &o.dims, &o.values), false),
                Kind::I64 => g.add_initializer(&name, Tensor::i64s(&o.dims, &whole(&o.values)), false),
                Kind::U8 => {
                    let bytes = o.values.iter().map(|v| *v as u8).collect();
                    g.add_initializer(&name, Tensor::from_bytes(DType::U8, &o.dims, bytes), false)
                }
                Kind::Bool => {
                    let bits: Vec<bool> = o.values.iter().map(|v| *v != 0.0).collect();
                    g.add_initializer(&name, Tensor::bools(&o.dims, &bits), false)
                }
                Kind::I32 => {
                    let bytes = o.values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect();
                    g.add_initializer(&name, Tensor::from_bytes(DType::I32, &o.dims, bytes), false)
                }
            }));
        }
        let mut results = Builder::new(&mut g, "y").node(sample.op.clone(), &values).map_err(|e| e.to_string())?;
        results.truncate(sample.results);
        results.iter().for_each(|v| g.add_output(*v, None));
        let names = results.iter().map(|v| g.name(*v).to_string()).collect();
        Ok(Application { session: open(&emit(&g))?, names })
    }

    fn run(&mut self, operands: &[Option<Operand>]) -> Result<Vec<Computed>, String> {
        let fed = operands.iter().enumerate().filter_map(|(i, o)| Some((i, o.as_ref().filter(|o| o.kind == Kind::Fed)?)));
        let feeds: Tensors = fed
            .map(|(i, o)| {
                let dims: Vec<usize> = o.dims.iter().map(|d| *d as usize).collect();
                (format!("x{i}"), floats(DType::F32, &dims, &o.values))
            })
            .collect();
        let got = self.session.run(&feeds).map_err(|e| e.to_string())?;
        Ok(self.names.iter().map(|n| (got[n].shape().to_vec(), got[n].to_f64())).collect())
    }
}

/// Elements outside an axis, along it, inside.
fn around(dims: &[usize], axis: usize) -> (usize, usize, usize) {
    (dims[..axis].iter().product(), dims[axis], dims[axis + 1..].iter().product())
}

fn reversed(dims: &[usize], axis: usize, values: &[f64]) -> Vec<f64> {
    let (outer, n, inner) = around(dims, axis);
    let at = |o: usize, k: usize| &values[(o * n + k) * inner..(o * n + k + 1) * inner];
    (0..outer).flat_map(|o| (0..n).rev().flat_map(move |k| at(o, k).iter().copied())).collect()
}

fn same(a: &[f64], b: &[f64]) -> bool {
    let largest = a.iter().filter(|v| v.is_finite()).fold(1.0, |m: f64, v| m.max(v.abs()));
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a == b || (a - b).abs() <= 1e-5 * largest || (a.is_nan() && b.is_nan()))
}

/// Checks one sample; returns the number of free axes.
fn check(sample: &Sample, axes: &Axes) -> Result<usize, String> {
    let operands = operands(sample);
    let mut application = Application::new(sample, &operands)?;
    let want = application.run(&operands)?;
    for (slot, (shape, _)) in want.iter().enumerate() {
        if shape.len() != axes.result(slot).len() {
            return Err(format!("result {slot} has shape {shape:?}, {} axes are stated", axes.result(slot).len()));
        }
    }
    let mut free = 0;
    for label in axes.labels().filter(|l| axes.along(*l) == Along::Free) {
        let of = |i: usize| Some((axes.in_operand(i, label)?, operands[i].as_ref()?));
        let having: Vec<(usize, usize, &Operand)> =
            (0..operands.len()).filter_map(|i| of(i).map(|(axis, o)| (i, axis, o))).collect();
        let extent = having.iter().map(|(_, axis, o)| o.dims[*axis]).max().unwrap_or(0);
        if extent < 2 {
            continue;
        }
        free += 1;
        let mut turned = operands.clone();
        let mut constants = false;
        for (i, axis, o) in &having {
            if o.dims[*axis] != extent {
                if o.dims[*axis] != 1 || !axes.broadcasts(*i) {
                    return Err(format!("operand {i} has extent {} along {label:?}, another {extent}", o.dims[*axis]));
                }
                continue;
            }
            let dims: Vec<usize> = o.dims.iter().map(|d| *d as usize).collect();
            constants |= o.kind != Kind::Fed;
            turned[*i] = Some(Operand { values: reversed(&dims, *axis, &o.values), ..(*o).clone() });
        }
        let got = match constants {
            true => Application::new(sample, &turned)?.run(&turned)?,
            false => application.run(&turned)?,
        };
        for (slot, ((shape, values), (_, got))) in want.iter().zip(&got).enumerate() {
            let Some(axis) = axes.in_result(slot, label) else { continue };
            if !same(&reversed(shape, axis, values), got) {
                return Err(format!("result {slot} is not reversed with its operands along axis {axis}"));
            }
        }
        for (i, axis, o) in having.iter().filter(|(_, axis, o)| o.kind == Kind::Fed && o.dims[*axis] == extent) {
            let dims: Vec<usize> = o.dims.iter().map(|d| *d as usize).collect();
            let (_, n, inner) = around(&dims, *axis);
            let mut other = operands.clone();
            let change = |(k, v): (usize, &f64)| if k / inner % n == 0 { v * 0.75 + 0.05 } else { *v };
            other[*i] = Some(Operand { values: o.values.iter().enumerate().map(change).collect(), ..(*o).clone() });
            for (slot, ((shape, values), (_, got))) in want.iter().zip(application.run(&other)?).enumerate() {
                let Some(at) = axes.in_result(slot, label) else { continue };
                let (_, n, inner) = around(shape, at);
                let rest = |v: &[f64]| -> Vec<f64> {
                    v.iter().enumerate().filter(|(k, _)| k / inner % n != 0).map(|(_, v)| *v).collect()
                };
                if !same(&rest(values), &rest(&got)) {
                    return Err(format!("part 0 of operand {i} changes other parts of result {slot} along axis {at}"));
                }
            }
        }
    }
    Ok(free)
}

/// ONNX Runtime 1.32 has no kernel for it, nor for the `Swish` that its definition is made of.
const NO_KERNEL: [&str; 1] = ["SwiGLU"];

fn applies(rule: &&&'static dyn OpRule) -> bool {
    rule.domain() != "ancre" && rule.class() != Class::Random && !NO_KERNEL.contains(&rule.name())
}

#[test]
fn parts_along_a_free_axis_are_computed_one_from_another() {
    let (mut failures, mut operators, mut free) = (Vec::new(), 0, 0);
    for rule in rules().iter().filter(applies) {
        let mut any = false;
        for (i, sample) in rule.samples().iter().enumerate() {
            let Some(axes) = stated(sample, &operands(sample)) else { continue };
            match check(sample, &axes) {
                Ok(axes) => (any, free) = (true, free + axes),
                Err(e) => failures.push(format!("{} sample {i} (opset {}): {e}", rule.name(), sample.opset)),
            }
        }
        operators += usize::from(any);
    }
    println!("{operators} operators, {free} free axes");
    assert!(failures.is_empty(), "{} statements are wrong:\n{}", failures.len(), failures.join("\n"));
    assert!(operators > 110 && free > 400, "{operators} operators, {free} free axes");
}

#[test]
fn a_wrong_statement_is_told() {
    // A softmax in reverse order along its own axis is the result in reverse order: only the other half of the check tells.
    let softmax = rules().iter().find(|r| r.name() == "Softmax").unwrap();
    let sample = softmax.samples().remove(0);
    let axes = stated(&sample, &operands(&sample)).unwrap();
    assert_eq!(check(&sample, &axes), Ok(1));
    let mut along_the_other = sample;
    along_the_other.op.attrs = along_the_other.op.attrs.with("axis", 0);
    let e = check(&along_the_other, &axes).unwrap_err();
    assert!(e.contains("changes other parts"), "{e}");
    // A running sum is another one in reverse order.
    let mut scan = along_the_other;
    scan.op = Op::new("CumSum", Attrs::new());
    scan.operands.push(SampleOperand::Ints { dims: vec![], values: vec![0] });
    let e = check(&scan, &axes).unwrap_err();
    assert!(e.contains("not reversed"), "{e}");
}

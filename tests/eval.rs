//! The evaluator against ONNX Runtime: on random small operands every operator gives its bits, or nothing; and every domain
//! agrees with numbers.

mod operands;

use crate::common::{Random, emit, open, tool_ok};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType};
use ancre_passes::ops::eval::{
    Array, Bounded, Call, Domain, Element, Exact, Operand, Poly, evaluate, operators, reads_type,
};
use ancre_rewrite::engine::Tensors;
use ancre_rewrite::engine::{Session, ort::OrtSession};
use ancre_rewrite::io::tensor::NpTensor;
use operands::*;
use std::collections::BTreeMap;

/// Cases of each operator.
const CASES: u64 = 40;

const OPSET: i64 = 18;
const MOST: usize = 1 << 12;

/// An operator on constants.
#[derive(Debug)]
struct Case {
    name: &'static str,
    attrs: Attrs,
    operands: Vec<Option<Tensor>>,
    results: usize,
}

fn case(name: &'static str, r: &mut Random) -> Case {
    let dims = shape(r, 3);
    let a = Attrs::new();
    let of = |attrs: Attrs, operands: Vec<Option<Tensor>>| Case { name, attrs, operands, results: 1 };
    match name {
        "Shape" | "Size" => {
            let x = any(r, &dims);
            let bounded = name == "Shape" && r.below(2) == 0;
            let a = if bounded { a.with("start", between(r, -4, 4)).with("end", bound(r)) } else { a };
            of(a, vec![Some(x)])
        }
        "Cast" | "CastLike" => {
            let (from, to) = (any_type(r), any_type(r));
            let x = tensor(r, from, &dims);
            if name == "Cast" {
                of(a.with("to", i64::from(to.onnx())), vec![Some(x)])
            } else {
                let like = tensor(r, to, &[1]);
                of(a, vec![Some(x), Some(like)])
            }
        }
        "Identity" | "Neg" | "Abs" | "Sign" | "Relu" | "NonZero" => {
            let x = any(r, &dims);
            of(a, vec![Some(x)])
        }
        "Floor" | "Ceil" | "Round" | "Sqrt" | "Reciprocal" | "Sigmoid" | "Tanh" => {
            let x = of_types(r, FLOATS, &dims);
            of(a, vec![Some(x)])
        }
        "Softmax" => {
            let dims = solid(r);
            let values: Vec<f64> = (0..count(&dims)).map(|_| one_of(r, &[0.0, 128.0, -1e30, 512.0])).collect();
            of(a, vec![Some(Tensor::floats(one_of(r, &FLOATS[..2]), &dims, &values))])
        }
        "Not" => of(a, vec![Some(tensor(r, DType::Bool, &dims))]),
        "BitwiseNot" => of(a, vec![Some(of_types(r, INTS, &dims))]),
        "And" | "Or" | "Xor" => {
            let other = partner(r, &dims);
            of(a, vec![Some(tensor(r, DType::Bool, &other)), Some(tensor(r, DType::Bool, &dims))])
        }
        "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => {
            let (t, other) = (one_of(r, INTS), partner(r, &dims));
            of(a, vec![Some(tensor(r, t, &other)), Some(tensor(r, t, &dims))])
        }
        "Add" | "Sub" | "Mul" | "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual" => {
            let (t, other) = (any_type(r), partner(r, &dims));
            let (x, y) = (tensor(r, t, &dims), tensor(r, t, &other));
            of(a, if r.below(2) == 0 { vec![Some(x), Some(y)] } else { vec![Some(y), Some(x)] })
        }
        "Div" | "Mod" => {
            let float = r.below(3) == 0;
            let t = one_of(r, if float { FLOATS } else { INTS });
            let other = partner(r, &dims);
            let x = tensor(r, t, &dims);
            // A division of integers by zero ends the process, and the smallest one by −1 too.
            let mut y = tensor(r, t, &other);
            if !float {
                let nonzero = |v: i64| if v == 0 || v == -1 { 3 } else { v };
                y = ints(t, &other, &y.to_i64().unwrap().into_iter().map(nonzero).collect::<Vec<_>>());
            }
            let a = if name == "Mod" && (float || r.below(2) == 0) { a.with("fmod", 1) } else { a };
            of(a, vec![Some(x), Some(y)])
        }
        "Pow" => {
            let (t, e) = (one_of(r, INTS), one_of(r, &[DType::I64, DType::I32]));
            let (x, other) = (tensor(r, t, &dims), partner(r, &dims));
            let exponents: Vec<i64> = (0..count(&other)).map(|_| between(r, 0, 5)).collect();
            of(a, vec![Some(x), Some(ints(e, &other, &exponents))])
        }
        "BitShift" => {
            let t = one_of(r, &[DType::U8, DType::U32, DType::U64]);
            let x = tensor(r, t, &dims);
            let by: Vec<i64> = (0..count(&dims)).map(|_| between(r, 0, 8 * t.size().unwrap() as i64 - 1)).collect();
            of(a.with("direction", one_of(r, &["LEFT", "RIGHT"])), vec![Some(x), Some(ints(t, &dims, &by))])
        }
        "Min" | "Max" => {
            let (t, other) = (any_type(r), partner(r, &dims));
            let mut all = vec![Some(tensor(r, t, &dims))];
            for _ in 0..r.below(3) {
                all.push(Some(tensor(r, t, &other)));
            }
            of(a, all)
        }
        "Clip" => {
            let t = any_type(r);
            let mut end = || (r.below(3) != 0).then(|| tensor(r, t, &[]));
            let (low, high) = (end(), end());
            of(a, vec![Some(tensor(r, t, &dims)), low, high])
        }
        "Where" => {
            let t = any_type(r);
            let (p, q) = (partner(r, &dims), partner(r, &dims));
            of(a, vec![Some(tensor(r, DType::Bool, &p)), Some(tensor(r, t, &dims)), Some(tensor(r, t, &q))])
        }
        "ReduceSum" | "ReduceProd" | "ReduceMax" | "ReduceMin" => {
            let mut a = a.with("keepdims", between(r, 0, 1)).with("noop_with_empty_axes", between(r, 0, 1));
            let x = any(r, &dims);
            let mut axes: Vec<i64> = (0..dims.len() as i64).filter(|_| r.below(2) == 0).collect();
            if r.below(2) == 0 {
                axes.iter_mut().for_each(|a| *a -= dims.len() as i64);
            }
            let axes = match r.below(3) {
                0 => None,
                _ => vector(&axes),
            };
            if r.below(2) == 0 {
                a.0.shift_remove("noop_with_empty_axes");
            }
            of(a, vec![Some(x), axes])
        }
        "CumSum" => {
            let dims = solid(r);
            let at = axis(r, dims.len());
            let x = of_types(r, &[DType::I32, DType::I64, DType::F32], &dims);
            of(a.with("exclusive", between(r, 0, 1)).with("reverse", between(r, 0, 1)), vec![Some(x), scalar(at)])
        }
        "ArgMax" | "ArgMin" => {
            let dims = solid(r);
            let a = a.with("axis", axis(r, dims.len())).with("keepdims", between(r, 0, 1));
            of(a.with("select_last_index", between(r, 0, 1)), vec![Some(any(r, &dims))])
        }
        "Range" => {
            let t = one_of(r, &[DType::I64, DType::I32, DType::I16, DType::F32, DType::F64]);
            let (start, end) = (between(r, -9, 9), between(r, -20, 20));
            let step = one_of(r, &[-5, -3, -1, 1, 2, 7]);
            if t.is_float() {
                let unit = one_of(r, &[1.0, 0.1, 0.25, 0.7]);
                let one = |v: i64| Some(Tensor::floats(t, &[], &[v as f64 * unit]));
                return of(a, vec![one(start), one(end), one(step)]);
            }
            let one = |v: i64| Some(ints(t, &[], &[v]));
            of(a, vec![one(start), one(end), one(step)])
        }
        "Reshape" => {
            let x = any(r, &dims);
            let n = count(&dims) as i64;
            let to = match r.below(5) {
                0 => vec![-1],
                1 => vec![1, n],
                2 if !dims.is_empty() => vec![0, -1],
                3 => vec![n, -1, 1],
                _ => dims.iter().rev().copied().collect(),
            };
            of(a.with("allowzero", between(r, 0, 1)), vec![Some(x), vector(&to)])
        }
        "Flatten" => {
            let at = between(r, -(dims.len() as i64), dims.len() as i64);
            of(a.with("axis", at), vec![Some(any(r, &dims))])
        }
        "Squeeze" => {
            let mut dims = dims;
            let at = r.below(dims.len() + 1);
            dims.insert(at, 1);
            let at = if r.below(2) == 0 { at as i64 } else { at as i64 - dims.len() as i64 };
            let axes = if r.below(3) == 0 { None } else { vector(&[at]) };
            of(a, vec![Some(any(r, &dims)), axes])
        }
        "Unsqueeze" => {
            let rank = dims.len() as i64 + 2;
            let (p, q) = (between(r, 0, rank - 2), -1);
            of(a, vec![Some(any(r, &dims)), vector(&[q, p])])
        }
        "Transpose" => {
            let mut perm: Vec<i64> = (0..dims.len() as i64).collect();
            for i in (1..perm.len()).rev() {
                let j = r.below(i + 1);
                perm.swap(i, j);
            }
            let a = if r.below(4) == 0 { a } else { a.with("perm", perm) };
            of(a, vec![Some(any(r, &dims))])
        }
        "Expand" => {
            let from = partner(r, &dims);
            of(a, vec![Some(any(r, &from)), vector(&dims)])
        }
        "Tile" => {
            let repeats: Vec<i64> = dims.iter().map(|_| between(r, 0, 3)).collect();
            of(a, vec![Some(any(r, &dims)), vector(&repeats)])
        }
        "Concat" | "Split" => {
            let dims = solid(r);
            let (t, at) = (any_type(r), axis(r, dims.len()));
            let k = (at + dims.len() as i64) as usize % dims.len();
            if name == "Concat" {
                let part = |r: &mut Random| {
                    let mut own = dims.clone();
                    own[k] = between(r, 0, 3);
                    Some(tensor(r, t, &own))
                };
                return of(a.with("axis", at), (0..1 + r.below(3)).map(|_| part(r)).collect());
            }
            let (n, first) = (dims[k], between(r, 0, dims[k]));
            let (a, sizes) =
                if r.below(2) == 0 { (a, vector(&[first, n - first])) } else { (a.with("num_outputs", 2), None) };
            Case { name, attrs: a.with("axis", at), operands: vec![Some(tensor(r, t, &dims)), sizes], results: 2 }
        }
        "Slice" => {
            let dims = solid(r);
            let mut axes: Vec<i64> = (0..dims.len() as i64).filter(|_| r.below(3) != 0).collect();
            if axes.is_empty() {
                axes.push(0);
            }
            let starts: Vec<i64> = axes.iter().map(|_| bound(r)).collect();
            let ends: Vec<i64> = axes.iter().map(|_| bound(r)).collect();
            let steps: Vec<i64> = axes.iter().map(|_| one_of(r, &[1, 1, 2, 3, -1, -2, i64::MAX, i64::MIN + 1])).collect();
            let axes = axes.iter().map(|a| if r.below(2) == 0 { *a } else { a - dims.len() as i64 }).collect::<Vec<_>>();
            let x = any(r, &dims);
            of(a, vec![Some(x), vector(&starts), vector(&ends), vector(&axes), vector(&steps)])
        }
        "Gather" | "GatherElements" | "ScatterElements" => {
            let dims = solid(r);
            let (t, at) = (any_type(r), axis(r, dims.len()));
            let k = (at + dims.len() as i64) as usize % dims.len();
            let mut of_indices: Vec<i64> = if name == "Gather" { shape(r, 2) } else { dims.clone() };
            if name != "Gather" {
                of_indices[k] = between(r, 1, dims[k]);
            }
            let places: Vec<i64> = (0..count(&of_indices)).map(|_| between(r, -dims[k], dims[k] - 1)).collect();
            let i = Some(ints(one_of(r, &[DType::I64, DType::I32]), &of_indices, &places));
            let mut operands = vec![Some(tensor(r, t, &dims)), i];
            if name == "ScatterElements" {
                operands.push(Some(tensor(r, t, &of_indices)));
            }
            of(a.with("axis", at), operands)
        }
        "GatherND" | "ScatterND" => {
            let dims = solid(r);
            let shared = if name == "GatherND" && dims.len() > 1 { r.below(2) } else { 0 };
            let m = 1 + r.below(dims.len() - shared);
            let mut of_indices: Vec<i64> = dims[..shared].to_vec();
            of_indices.push(between(r, 1, 2));
            let rows = count(&of_indices);
            let places: Vec<i64> = (0..rows)
                .flat_map(|_| (0..m).map(|k| dims[shared + k]).collect::<Vec<_>>())
                .map(|d| between(r, -d, d - 1))
                .collect();
            of_indices.push(m as i64);
            let t = any_type(r);
            let mut operands = vec![Some(tensor(r, t, &dims)), Some(Tensor::i64s(&of_indices, &places))];
            if name == "ScatterND" {
                let updates = [&of_indices[..of_indices.len() - 1], &dims[m..]].concat();
                operands.push(Some(tensor(r, t, &updates)));
                return of(a, operands);
            }
            of(a.with("batch_dims", shared as i64), operands)
        }
        "Pad" => {
            let dims = solid(r);
            let mode = one_of(r, &["constant", "constant", "reflect", "edge", "wrap"]);
            let low = if mode == "constant" { -1 } else { 0 };
            let pads: Vec<i64> = (0..2 * dims.len()).map(|_| between(r, low, 2)).collect();
            let t = any_type(r);
            let fill = (r.below(2) == 0).then(|| tensor(r, t, &[]));
            of(a.with("mode", mode), vec![Some(tensor(r, t, &dims)), vector(&pads), fill])
        }
        "Trilu" => {
            let mut dims = dims;
            dims.extend([between(r, 1, 4), between(r, 1, 4)]);
            let k = if r.below(2) == 0 { scalar(between(r, -3, 3)) } else { None };
            of(a.with("upper", between(r, 0, 1)), vec![Some(any(r, &dims)), k])
        }
        "OneHot" => {
            let depth = between(r, 1, 4);
            let at: Vec<i64> = (0..count(&dims)).map(|_| between(r, -depth - 1, depth + 1)).collect();
            let values = of_types(r, &[DType::I64, DType::F32, DType::I32], &[2]);
            let a = a.with("axis", axis(r, dims.len() + 1));
            of(a, vec![Some(Tensor::i64s(&dims, &at)), scalar(depth), Some(values)])
        }
        "ConstantOfShape" => {
            let value = any(r, &[1]);
            let a = if r.below(4) == 0 { a } else { a.with("value", value) };
            of(a, vec![vector(&dims)])
        }
        other => panic!("no random cases of {other}"),
    }
}

// ---- what is compared ---------------------------------------------------------------------------------------------------

impl Case {
    /// The evaluator's results, of operands given in some domain.
    fn evaluated<D: Domain>(&self, arrays: &[Option<Array<D>>]) -> Option<Vec<Array<D>>> {
        let mut operands: Vec<Operand<D>> = Vec::new();
        for (i, (t, array)) in self.operands.iter().zip(arrays).enumerate() {
            operands.push(match t {
                None => Operand::Missing,
                Some(t) if reads_type(self.name, i) => Operand::Type(TensorType::fixed(t.dtype(), t.dims()).into()),
                Some(_) => Operand::Array(array.as_ref()?),
            });
        }
        let op = Op::new(self.name, self.attrs.clone());
        let call = Call { op: &op, opset: OPSET, operands: &operands, results: self.results, most: MOST };
        evaluate(&call)
    }

    fn arrays<D: Domain>(&self) -> Vec<Option<Array<D>>> {
        self.operands.iter().map(|t| t.as_ref().and_then(|t| Array::read(t))).collect()
    }

    fn exact(&self) -> Option<Vec<Array<Exact>>> {
        self.evaluated(&self.arrays::<Exact>())
    }

    /// ONNX Runtime's results of these types; `None` where it has no kernel for the operands'.
    fn run(&self, ours: &[Array<Exact>]) -> Option<Result<Vec<NpTensor>, String>> {
        let mut g = Graph::default();
        g.opsets.insert(String::new(), OPSET);
        let mut feeds = Tensors::new();
        let mut operands = Vec::new();
        for (i, t) in self.operands.iter().enumerate() {
            operands.push(t.as_ref().map(|t| {
                let name = format!("x{i}");
                let shape: Vec<usize> = t.dims().iter().map(|d| *d as usize).collect();
                feeds.insert(name.clone(), NpTensor::new(t.dtype(), &shape, t.bytes().unwrap().into_owned()).unwrap());
                g.add_input(&name, TensorType::fixed(t.dtype(), t.dims()).into(), None)
            }));
        }
        while operands.last() == Some(&None) {
            operands.pop();
        }
        let node = g.add_op("node", Op::new(self.name, self.attrs.clone()), &operands);
        for (i, y) in ours.iter().enumerate() {
            let v = g.push_result(node, &format!("y{i}"), TensorType::fixed(y.dtype, &y.dims).into());
            g.add_output(v, None);
        }
        let mut session: OrtSession = match open(&emit(&g)) {
            Ok(session) => session,
            Err(e) if e.contains("does not match expected type") => return Some(Err(e)),
            // It has no kernel for these types, or finds the operands unfit.
            Err(_) => return None,
        };
        Some(
            session
                .run(&feeds)
                .map_err(|e| e.to_string())
                .map(|got| (0..self.results).map(|i| got[&format!("y{i}")].clone()).collect()),
        )
    }
}

#[test]
fn every_operator_gives_the_runtime_s_bits_or_nothing() {
    let mut failures = Vec::new();
    let mut compared: BTreeMap<&str, usize> = operators().map(|n| (n, 0)).collect();
    for (k, name) in operators().enumerate() {
        let mut r = Random(1000 + k as u64);
        for _ in 0..CASES {
            let case = case(name, &mut r);
            let Some(ours) = case.exact() else { continue };
            let Some(theirs) = case.run(&ours) else { continue };
            let theirs = match theirs {
                Ok(theirs) => theirs,
                Err(e) => {
                    failures.push(format!("{}: gives {ours:?}, where the runtime says {e}", shown(&case)));
                    continue;
                }
            };
            for (a, b) in ours.iter().zip(theirs) {
                let t = a.to_tensor().unwrap();
                let dims: Vec<usize> = t.dims().iter().map(|d| *d as usize).collect();
                if (t.dtype(), dims.as_slice(), &*t.bytes().unwrap()) != (b.dtype(), b.shape(), b.bytes()) {
                    failures.push(format!(
                        "{}\n  gives {a:?}\n  where the runtime has {:?} {:?}",
                        shown(&case),
                        b.shape(),
                        b.to_f64()
                    ));
                }
            }
            *compared.entry(name).or_default() += 1;
        }
    }
    println!("{compared:?}");
    // Nobody's tanh is correctly rounded: only a proof says something of it.
    let never: Vec<&&str> =
        compared.iter().filter(|(n, c)| **c < 5 && !["Sigmoid", "Tanh"].contains(n)).map(|(n, _)| n).collect();
    assert!(never.is_empty(), "hardly compared: {never:?}");
    assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures[..failures.len().min(20)].join("\n"));
}

fn shown(c: &Case) -> String {
    let value = |t: &Option<Tensor>| t.as_ref().map(|t| format!("{}{:?} {:?}", t.dtype(), t.dims(), t.to_f64().unwrap()));
    format!("{} {:?} {:?}", c.name, c.attrs, c.operands.iter().map(value).collect::<Vec<_>>())
}

/// The same operands with some of their elements as symbols, and what those stand for.
fn with_symbols(case: &Case, r: &mut Random) -> (Vec<Option<Array<Poly>>>, Vec<i64>) {
    let mut arrays = case.arrays::<Poly>();
    let mut values = Vec::new();
    for array in arrays.iter_mut().flatten().filter(|a| a.dtype == DType::I64 || a.dtype == DType::I32) {
        for e in &mut array.elements {
            if let Element::Int(v @ 1..1000) = *e
                && r.below(2) == 0
            {
                *e = Poly::extent(&Dim::symbol(&format!("s{}", values.len()))).unwrap();
                values.push(v);
            }
        }
    }
    (arrays, values)
}

#[test]
fn polynomials_under_an_assignment_are_the_numbers() {
    let mut open = BTreeMap::new();
    for (k, name) in operators().enumerate() {
        let mut r = Random(2000 + k as u64);
        for _ in 0..10 * CASES {
            let case = case(name, &mut r);
            let (arrays, values) = with_symbols(&case, &mut r);
            let (Some(polynomials), Some(numbers)) = (case.evaluated(&arrays), case.exact()) else { continue };
            let value = |s: &str| s.strip_prefix('s').and_then(|i| values.get(i.parse::<usize>().ok()?)).copied();
            for (p, n) in polynomials.iter().zip(&numbers) {
                assert_eq!((p.dtype, &p.dims), (n.dtype, &n.dims), "{}", shown(&case));
                for (p_e, n_e) in p.elements.iter().zip(&n.elements) {
                    let same = match (p_e, n_e) {
                        (Element::Float(a), Element::Float(b)) => a.to_bits() == b.to_bits(),
                        (e, Element::Int(n)) => {
                            // A polynomial does not wrap; what its value wraps to is the number.
                            let value = Poly::as_extent(e, p.dtype).unwrap().eval(&value);
                            let wrapped = |v| Array::<Exact>::vector([v]).cast(p.dtype).unwrap().ints().unwrap();
                            value.is_none_or(|v| wrapped(v) == [*n])
                        }
                        _ => false,
                    };
                    assert!(same, "{}: {arrays:?} gives {p:?} where numbers give {n:?}", shown(&case));
                }
                *open.entry(name).or_insert(0) += p.elements.iter().filter(|e| matches!(e, Element::Open(_))).count();
            }
        }
    }
    for name in ["Add", "Mul", "Sub", "Gather", "Slice", "Concat", "ReduceProd", "Max", "Where", "CumSum", "Cast"] {
        assert!(open.get(name).is_some_and(|n| *n > 0), "{name} never carries a symbol: {open:?}");
    }
}

#[test]
fn a_proof_s_elements_are_the_numbers_or_hold_them() {
    for (k, name) in operators().enumerate() {
        let mut r = Random(3000 + k as u64);
        for _ in 0..4 * CASES {
            let case = case(name, &mut r);
            let Some(bounded) = case.evaluated(&case.arrays::<Bounded>()) else { continue };
            let Some(exact) = case.exact() else { continue };
            for (b, e) in bounded.iter().zip(&exact) {
                assert_eq!((b.dtype, &b.dims), (e.dtype, &e.dims), "{}", shown(&case));
                for (b, e) in b.elements.iter().zip(&e.elements) {
                    let holds = match (b, e) {
                        (Element::Int(a), Element::Int(b)) => a == b,
                        (Element::Float(a), Element::Float(b)) => a.to_bits() == b.to_bits(),
                        (Element::Open(Bounded::Within(bound)), Element::Float(v)) => v.abs() <= *bound,
                        _ => false,
                    };
                    assert!(holds, "{}: {b:?} where numbers give {e:?}", shown(&case));
                }
            }
        }
    }
}

// ---- files that went wrong ----------------------------------------------------------------------------------------------

fn file(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, emit(&ancre_passes::text::parse(text).unwrap())).unwrap();
    (dir, path)
}

#[test]
fn a_cast_that_wraps_trains_where_the_source_runs() {
    let (dir, path) = file(
        "wraps.onnx",
        "g (float[batch, 4] x) => (float[batch, 4] y) <int64[1] c = {4294967297}, float[3, 4] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
            i = Cast <to = 6> (c)
            row = Gather <axis = 0> (table, i)
            y = Add (x, row)
        }",
    );
    let arguments = ["--loss", "mse", "--chains", "none", "--state", "inline"].map(AsRef::as_ref);
    tool_ok(&[&[path.as_os_str()], &arguments[..]].concat());
    let bytes = std::fs::read(dir.path().join("wraps.ancre.train.onnx")).unwrap();
    let (g, _) = ancre_rewrite::io::files::read_model(&dir.path().join("wraps.ancre.train.onnx")).unwrap();
    let feeds: Tensors = g
        .required_inputs()
        .map(|v| {
            let ty = g.tensor_type(v).unwrap();
            let shape: Vec<usize> = ty.shape.iter().map(|d| d.known().unwrap_or(2) as usize).collect();
            (g.name(v).to_string(), NpTensor::zeros(ty.dtype, &shape).unwrap())
        })
        .collect();
    open(&bytes).unwrap().run(&feeds).unwrap();
}

#[test]
fn shape_arithmetic_in_int32_is_rebuilt_for_a_batch() {
    let (dir, path) = file(
        "int32.onnx",
        "g (float[N, 6, 8] x) => (float[N, 6, 8] y) <float[8, 8] w = {…}, int64[1] ax0 = {0}, int64[1] en1 = {1}, int64[2] inner = {1, 2}, int32[1] ones = {1}> {
            h = MatMul (x, w)
            m = ReduceMin <keepdims = 0> (h, inner)
            s = Shape (h)
            s32 = Cast <to = 6> (s)
            b = Slice (s32, ax0, en1, ax0)
            c = Concat <axis = 0> (b, ones, ones)
            c64 = Cast <to = 7> (c)
            mr = Reshape (m, c64)
            y = Sub (h, mr)
        }",
    );
    tool_ok(&[path.as_os_str(), "--loss".as_ref(), "mse".as_ref(), "--batch".as_ref(), "3".as_ref()]);
    let (g, _) = ancre_rewrite::io::files::read_model(&dir.path().join("int32.ancre.train.onnx")).unwrap();
    let x = g.tensor_type(g.find("x").unwrap()).unwrap();
    assert_eq!(x.known_dims(), Some(vec![3, 6, 8]));
}

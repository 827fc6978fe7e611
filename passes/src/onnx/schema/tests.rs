use super::meaning::{Use, spoken};
use super::*;
use crate::ir::{Attrs, TensorType};

#[test]
fn the_table_is_in_the_order_that_is_searched() {
    let key = |s: &Schema| (s.domain, s.name, s.since);
    assert!(all().is_sorted_by(|a, b| key(a) < key(b)));
    assert!(all().iter().all(|s| s.attributes.is_sorted_by_key(|a| a.name)));
    assert!(all().iter().filter(|s| s.domain.is_empty()).all(|s| s.since <= NEWEST));
}

#[test]
fn a_version_is_the_latest_up_to_the_operator_set() {
    assert_eq!(at("", "Add", 13).unwrap().since, 13);
    assert_eq!(at("ai.onnx", "Add", 12).unwrap().since, 7);
    assert!(at("", "Gelu", 19).is_none() && at("", "NoSuchOperator", 19).is_none());
    assert!(at("", "Upsample", 10).unwrap().deprecated() && at("", "Gelu", 20).unwrap().has_body());
    assert_eq!((ir_version_of(8), ir_version_of(18), ir_version_of(NEWEST)), (3, 8, NEWEST_IR));
}

#[test]
fn attributes_have_the_defaults_of_the_standard() {
    let leaky = Op::new("LeakyRelu", Attrs::new());
    assert_eq!((leaky.float("alpha"), leaky.int("alpha")), (0.01, 0));
    assert_eq!(Op::new("LeakyRelu", Attrs::new().with("alpha", 0.5_f32)).float("alpha"), 0.5);
    assert_eq!(Op::new("Softmax", Attrs::new()).int("axis"), -1);
    assert_eq!(Op::new("Resize", Attrs::new()).str("mode"), "nearest");
    assert_eq!(Op::in_domain("com.microsoft", "QuickGelu", Attrs::new()).float("alpha"), 1.702);
}

fn on(op: &Op, dtype: DType, operands: usize) -> Use<'_> {
    let ty = || TensorType::fixed(dtype, &[2, 3, 4, 5]).into();
    Use { op, operands: (0..operands).map(|_| Some(ty())).collect(), results: vec![ty()] }
}

#[test]
fn a_node_goes_down_to_the_version_that_says_all_of_it() {
    let lowest = |op: Op, dtype, operands| on(&op, dtype, operands).lowest(NEWEST, 18);
    let with = |name: &str, attrs| Op::new(name, attrs);
    let pool = |d: i64| Attrs::new().with("kernel_shape", vec![2, 2]).with("dilations", vec![d, 1]);
    assert_eq!(lowest(with("Relu", Attrs::new()), DType::F32, 1), 18);
    assert_eq!(lowest(with("Sin", Attrs::new()), DType::BF16, 1), 22, "its element type came later");
    assert_eq!(lowest(with("Gelu", Attrs::new()), DType::F32, 1), 20);
    assert_eq!(lowest(with("GroupNormalization", Attrs::new().with("num_groups", 1)), DType::F32, 3), 21);
    assert_eq!(lowest(with("AveragePool", pool(1)), DType::F32, 1), 18, "says nothing");
    assert_eq!(lowest(with("AveragePool", pool(2)), DType::F32, 1), 19);
    assert_eq!(lowest(with("Pad", Attrs::new().with("mode", "wrap")), DType::F32, 2), 19);
    assert_eq!(lowest(with("Cast", Attrs::new().with("to", 1).with("round_mode", "down")), DType::F32, 1), 24);
    assert_eq!(lowest(with("Attention", Attrs::new()), DType::F32, 3), 23);
    assert_eq!(lowest(with("Mod", Attrs::new()), DType::F32, 2), 28, "floats, rounded to minus infinity");
}

#[test]
fn a_form_that_changed_is_seen_and_one_that_did_not_is_not() {
    let same = |op: Op, operands, from, to| on(&op, DType::F32, operands).same_meaning(from, to);
    let listed = |name: &str| Op::new(name, Attrs::new().with("axes", vec![1]));
    assert!(!same(listed("ReduceMean"), 1, 17, 18) && same(Op::new("ReduceMean", Attrs::new()), 1, 17, 18));
    assert!(!same(listed("Squeeze"), 1, 12, 13) && !same(Op::new("Upsample", Attrs::new()), 2, 9, 18));
    assert!(!same(Op::new("Split", Attrs::new()), 1, 13, 18) && same(Op::new("Split", Attrs::new()), 2, 13, 18));
    assert!(same(Op::new("Softmax", Attrs::new().with("axis", 3)), 1, 12, 13));
    assert!(!same(Op::new("Softmax", Attrs::new().with("axis", 1)), 1, 12, 13));
    assert!(!same(Op::new("Softmax", Attrs::new()), 1, 12, 13), "its default changed");
    assert!(same(Op::new("GridSample", Attrs::new()), 2, 16, 20), "the default has another name");
    assert!(same(Op::new("BatchNormalization", Attrs::new().with("spatial", 1)), 5, 7, 18));
    assert!(!same(Op::new("BatchNormalization", Attrs::new().with("spatial", 0)), 5, 7, 18));
}

#[test]
fn what_a_version_does_not_take_is_said() {
    let unfit = |op: Op, dtype, operands, opset| on(&op, dtype, operands).unfit(opset).unwrap_or_default();
    assert_eq!(unfit(Op::new("Gelu", Attrs::new()), DType::F32, 1, 18), "exists from opset 20");
    assert_eq!(unfit(Op::new("Scatter", Attrs::new()), DType::F32, 3, 18), "is gone since opset 11");
    assert_eq!(
        unfit(Op::new("Clip", Attrs::new().with("min", 0.0_f32)), DType::F32, 1, 18),
        "has no attribute `min` in version 13"
    );
    assert_eq!(unfit(Op::new("Concat", Attrs::new()), DType::F32, 2, 18), "lacks the attribute `axis` of version 13");
    assert_eq!(unfit(Op::new("Add", Attrs::new()), DType::F32, 1, 18), "lacks the operand `B` of version 14");
    assert_eq!(unfit(Op::new("Relu", Attrs::new()), DType::F32, 2, 18), "has 2 operands, more than version 14 takes");
    assert_eq!(unfit(Op::new("Relu", Attrs::new()), DType::Bool, 1, 18), "does not take bool in version 14");
    assert_eq!(unfit(Op::new("Concat", Attrs::new().with("axis", 0)), DType::F32, 9, 18), "");
}

#[test]
fn two_spellings_of_one_meaning_say_the_same() {
    let said = |op: Op, opset| spoken(&op, opset).iter().map(|(n, a)| format!("{n} = {a:?}")).collect::<Vec<_>>().join(", ");
    let mode = |m: &str| Op::new("GridSample", Attrs::new().with("mode", m));
    assert_eq!(said(mode("bilinear"), 16), "");
    assert_eq!(said(mode("bicubic"), 16), said(mode("cubic"), 20));
    assert_eq!(said(Op::new("Softmax", Attrs::new()), 12), "axis = Int(1)");
    assert_eq!(said(Op::new("Conv", Attrs::new().with("strides", vec![1, 1]).with("auto_pad", "")), 18), "");
}

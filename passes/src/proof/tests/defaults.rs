//! An attribute spelled at its default means the same as one left out.

use super::*;
use crate::ir::{Attrs, DType, Op, TensorType, ValueType};
use crate::onnx::schema::{self, Kind, Schema};
use onnx_protobuf::{AttributeProto, attribute_proto::AttributeType};

/// One node of the operator in its version, with operands of unknown type, and these attributes.
fn node(s: &Schema, attrs: Attrs) -> Graph {
    let mut g = Graph::default();
    g.opsets.insert(String::new(), if s.domain.is_empty() { s.since } else { 18 });
    g.opsets.insert(s.domain.to_string(), s.since);
    let count = s.operands.iter().filter(|f| !f.optional || f.variadic).count();
    let x = |i| TensorType::fixed(if i == 0 { DType::F32 } else { DType::I64 }, &[2, 3, 4, 5]);
    let operands: Vec<_> = (0..count).map(|i| Some(g.add_input(&format!("x{i}"), x(i).into(), None))).collect();
    let n = g.add_op("n", Op::in_domain(s.domain, s.name, attrs), &operands);
    for i in 0..s.results.iter().filter(|f| !f.optional || f.variadic).count().max(1) {
        let v = g.push_result(n, &format!("y{i}"), ValueType::default());
        g.add_output(v, None);
    }
    g
}

/// Something for an attribute that must be given.
fn filled(s: &Schema) -> Attrs {
    let mut attrs = Attrs::new();
    for a in s.attributes.iter().filter(|a| a.required) {
        attrs = match a.kind {
            Kind::Int => attrs.with(a.name, 1),
            Kind::Float => attrs.with(a.name, 1.0_f32),
            Kind::Ints => attrs.with(a.name, vec![1, 1]),
            Kind::String => attrs.with(a.name, "one"),
            _ => attrs,
        };
    }
    attrs
}

#[test]
fn every_default_may_be_spelled_in_every_version() {
    let mut compared = 0;
    for s in schema::all() {
        let plain = node(s, filled(s));
        // Operators that draw numbers, or whose attributes are graphs, equal nothing.
        if !prove(&plain, &node(s, filled(s))).proved {
            continue;
        }
        for a in s.attributes {
            let Some(default) = a.default.and_then(|d| d.attr()) else { continue };
            let said = node(s, filled(s).with(a.name, default));
            let proof = prove(&plain, &said);
            assert!(proof.proved, "{} {} {}: {}", s.name, s.since, a.name, proof.reason);
            compared += 1;
        }
    }
    assert!(compared > 700, "{compared}");
}

#[test]
fn case_24_a_resize_that_spells_its_defaults() {
    let plain = r#"y = Resize (x, "", scales)"#;
    let said = r#"y = Resize <coordinate_transformation_mode = "half_pixel", mode = "nearest", nearest_mode = "round_prefer_floor"> (x, "", scales)"#;
    let asymmetric = r#"y = Resize <coordinate_transformation_mode = "asymmetric"> (x, "", scales)"#;
    let scales = "float[4] scales = {1.0, 1.0, 2.0, 2.0}";
    equal("float[1, 2, 3, 4]", scales, plain, said);
    differ("float[1, 2, 3, 4]", scales, plain, asymmetric);
}

#[test]
fn a_default_of_one_operator_is_none_of_another() {
    let leaky = |alpha: &str| format!("y = LeakyRelu <alpha = {alpha}> (x)");
    equal("float[2]", "", &leaky("0.01"), "y = LeakyRelu (x)");
    differ("float[2]", "", &leaky("1.0"), "y = LeakyRelu (x)");
}

/// What one operator set does by default may be what another has to be told.
#[test]
fn defaults_are_those_of_the_operator_set() {
    let of = |opset: i64, attributes: &str| {
        let mut g = of_x("float[2, 3, 4]", "", &format!("y = Softmax {attributes} (x)"));
        g.opsets.insert(String::new(), opset);
        g
    };
    assert!(prove(&of(12, "<axis = 2>"), &of(13, "")).proved);
    assert!(!prove(&of(12, ""), &of(13, "")).proved);
    assert!(!prove(&of(12, ""), &of(13, "<axis = 1>")).proved, "its axes were taken together");
}

#[test]
fn a_list_of_strings_is_no_attribute_of_the_ir() {
    let strings =
        AttributeProto { strings: vec![b"Tanh".to_vec()], type_: AttributeType::STRINGS.into(), ..Default::default() };
    let rnn = schema::at("", "RNN", 14).unwrap();
    let default = rnn.attribute("activations").unwrap().default.unwrap();
    assert!(!default.is(&crate::ir::Attr::Opaque(Box::new(strings.clone()))), "the default is one for each direction");
    let twice = AttributeProto { strings: vec![b"Tanh".to_vec(); 2], ..strings };
    assert!(default.is(&crate::ir::Attr::Opaque(Box::new(twice))));
}

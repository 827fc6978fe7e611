//! Operator sets before 7, against what onnx's version converter makes of them.

use super::from_old;
use crate::ir::{Graph, Kind};
use crate::text::{parse, print};

/// The body of the graph in opset 7.
fn upgraded(opset: i64, text: &str) -> Result<String, String> {
    // The rules that the parser asks know today's forms.
    let mut unruled = String::new();
    for (i, part) in text.split("= ").enumerate() {
        let operator = i > 0 && part.starts_with(|c: char| c.is_ascii_uppercase());
        unruled += if i == 0 {
            ""
        } else if operator {
            "= old."
        } else {
            "= "
        };
        unruled += part;
    }
    let mut g: Graph = parse(&unruled).unwrap();
    let nodes: Vec<_> = g.nodes().collect();
    for id in nodes {
        if let Kind::Op(op) = &mut g.node_mut(id).kind {
            op.domain.clear();
        }
    }
    g.opsets.insert(String::new(), opset);
    from_old(&mut g).map_err(|e| e.to_string())?;
    assert_eq!(g.opsets[""], 7);
    let all = print(&g);
    let body = all.split_once('{').map_or("", |(_, body)| body);
    Ok(body.trim_end().trim_end_matches('}').split_whitespace().collect::<Vec<_>>().join(" "))
}

const IMAGE: &str = "g (float[2, 3, 4, 5] x, float[3] b, float[5] r) => (y)";

#[track_caller]
fn becomes(opset: i64, before: &str, after: &str) {
    assert_eq!(upgraded(opset, &format!("{IMAGE} {{ {before} }}")).unwrap(), after);
}

#[test]
fn operands_that_were_aligned_by_an_attribute_get_axes() {
    becomes(
        6,
        "y = Add <broadcast = 1, axis = 1> (x, b)",
        "y/Unsqueeze = Unsqueeze <axes = [1, 2]> (b) y = Add (x, y/Unsqueeze)",
    );
    becomes(6, "y = Mul <broadcast = 1, axis = 3> (x, r)", "y = Mul (x, r)");
    becomes(6, "y = Mul <broadcast = 1, axis = -1> (x, r)", "y = Mul (x, r)");
    becomes(6, "y = Less <broadcast = 1> (x, r)", "y = Less (x, r)");
    becomes(5, "y = Sub <consumed_inputs = [0, 1]> (x, x)", "y = Sub (x, x)");
    becomes(6, "y = PRelu (x, b)", "y/Unsqueeze = Unsqueeze <axes = [1, 2]> (b) y = PRelu (x, y/Unsqueeze)");
    let e = upgraded(6, &format!("{IMAGE} {{ u = Unknown (x) y = Add <broadcast = 1, axis = 1> (u, b) }}")).unwrap_err();
    assert!(e.contains("the ranks of its operands are unknown"), "{e}");
}

#[test]
fn attributes_of_old_forms_are_written_as_new_ones() {
    becomes(1, "y = Pad <paddings = [0, 0, 1, 1, 0, 0, 1, 1]> (x)", "y = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x)");
    becomes(
        6,
        r#"y = Upsample <height_scale = 2.0, mode = "bilinear", width_scale = 3.0> (x)"#,
        r#"y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 3.0]> (x)"#,
    );
    becomes(5, r#"y = Cast <to = "FLOAT16"> (x)"#, "y = Cast <to = 10> (x)");
    becomes(3, "y = Concat (x, x)", "y = Concat <axis = 1> (x, x)");
    becomes(6, "y = Concat <axis = 2> (x, x)", "y = Concat <axis = 2> (x, x)");
    becomes(5, "y = Selu (x)", "y = Selu <alpha = 1.6732, gamma = 1.0507> (x)");
    becomes(6, "y = Selu (x)", "y = Selu (x)");
    becomes(1, "y = GlobalLpPool <p = 2.0> (x)", "y = GlobalLpPool <p = 2> (x)");
    becomes(6, "y = Dropout <is_test = 1, ratio = 0.25> (x)", "y = Dropout <ratio = 0.25> (x)");
}

#[test]
fn batch_normalisation_loses_statistics_that_nobody_reads() {
    let of = |outputs: &str| {
        let text = IMAGE.replace("(y)", outputs);
        upgraded(
            6,
            &format!("{text} {{ y, m, v, sm, sv = BatchNormalization <epsilon = 0.001, is_test = 1> (x, b, b, b, b) }}"),
        )
    };
    assert_eq!(of("(y)").unwrap(), "y = BatchNormalization <epsilon = 0.001> (x, b, b, b, b)");
    assert_eq!(of("(y, m)").unwrap(), "y, m, v, sm, sv = BatchNormalization <epsilon = 0.001> (x, b, b, b, b)");
}

#[test]
fn a_form_that_nothing_is_known_of_is_refused() {
    let e = upgraded(6, &format!("{IMAGE} {{ y = Relu <strange = 1> (x) }}")).unwrap_err();
    assert!(e.contains("cannot be brought from opset 6 to 7: has no attribute `strange`"), "{e}");
}

//! Control flow that is decided before the graph runs.

use crate::common::{emit, floats, open};
use crate::roundtrip::{everything, node};
use ancre_passes::ir::{DType, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::refusal::Applied;
use ancre_passes::transform::control_flow::inline_control_flow;
use ancre_rewrite::engine::{Session, Tensors};
use onnx_protobuf::{Message, ModelProto, NodeProto};

/// A loop, an If in an If and a Scan, with the condition computed from a shape: what takes their place computes the same bits.
#[test]
fn what_takes_the_place_of_control_flow_computes_the_same() {
    let mut source: ModelProto = everything();
    let g = source.graph.as_mut().unwrap();
    g.input.retain(|i| i.name != "c");
    let condition = [node("Size", &["zeros"], &["size"]), node("Equal", &["size", "three"], &["c"])];
    g.node.splice(0..0, condition.map(|n| NodeProto { name: String::new(), ..n }));
    let bytes = source.write_to_bytes().unwrap();
    let mut graph = onnx::read(&SharedBytes::new(bytes.clone()), None).unwrap();
    let mut applied = Applied::default();
    inline_control_flow(&mut graph, &mut applied);
    assert_eq!((applied.changed, applied.refused.len()), (4, 0), "{:?}", applied.refused);
    let feeds = Tensors::from([("x".to_string(), floats(DType::F32, &[2, 3], &[1.0, -2.0, 0.5, 0.1, 0.0, -0.3]))]);
    let run = |bytes: &[u8]| open(bytes).unwrap().run(&feeds).unwrap();
    let (before, after) = (run(&bytes), run(&emit(&graph)));
    for name in ["y", "total"] {
        assert_eq!(before[name].bytes(), after[name].bytes(), "{name}");
    }
}

//! `Shape` (or a range of it, from opset 15), `Size`: int64.

use super::sample::floats;
use super::*;

pub(super) struct Shape;

impl OpRule for Shape {
    fn name(&self) -> &'static str {
        "Shape"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        let rank = cx.ty(0)?.rank() as i64;
        let at = |name, default| {
            let v = cx.attrs().int(name, default);
            (if v < 0 { v + rank } else { v }).clamp(0, rank)
        };
        Ok(vec![TensorType::fixed(DType::I64, &[(at("end", rank) - at("start", 0)).max(0)])])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Shape", Attrs::new(), vec![floats(&[2, 3])]).shape_only(),
            Sample::of("Shape", Attrs::new().with("start", -2).with("end", 2), vec![floats(&[2, 3, 4])]).shape_only(),
        ]
    }
}

pub(super) struct Size;

impl OpRule for Size {
    fn name(&self) -> &'static str {
        "Size"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, _: &Infer) -> Types {
        Ok(vec![TensorType::fixed(DType::I64, &[])])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Size", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}

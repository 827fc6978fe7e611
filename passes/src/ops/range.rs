//! `Range`: start, start + delta, … below the limit.

use super::*;

pub(super) struct Range;

impl OpRule for Range {
    fn name(&self) -> &'static str {
        "Range"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let dtype = cx.ty(0)?.dtype;
        let length = match (cx.ints(0).as_deref(), cx.ints(1).as_deref(), cx.ints(2).as_deref()) {
            (Some([start]), Some([limit]), Some([delta])) if *delta != 0 => {
                let length = eval::length(*start, *limit, *delta).unwrap_or(0);
                Dim::from(i64::try_from(length).map_err(|_| TypeError(format!("{length} elements are too many")))?)
            }
            // From one extent to another that is no smaller.
            (_, _, Some([1])) => match (cx.extents(0).as_deref(), cx.extents(1).as_deref()) {
                (Some([start]), Some([limit])) if (limit - start).bounds().0 >= 0 => limit - start,
                _ => unknown_dim("range"),
            },
            _ => unknown_dim("range"),
        };
        Ok(vec![TensorType::new(dtype, vec![length])])
    }
    fn derivative(&self) -> Derivative {
        Derivative::None("a range computed from trained numbers")
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "Range",
                Attrs::new(),
                vec![
                    SampleOperand::Ints { dims: vec![], values: vec![1] },
                    SampleOperand::Ints { dims: vec![], values: vec![8] },
                    SampleOperand::Ints { dims: vec![], values: vec![3] },
                ],
            )
            .shape_only(),
        ]
    }
}

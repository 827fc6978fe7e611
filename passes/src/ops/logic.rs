//! Logic on booleans, with broadcasting.

use super::*;

pub(super) struct Not;

impl OpRule for Not {
    fn name(&self) -> &'static str {
        "Not"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        bool_like_all(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Not", Attrs::new(), vec![SampleOperand::Bools { dims: vec![3], values: vec![true, false, true] }])
                .shape_only(),
        ]
    }
}

pub(super) struct And;

impl OpRule for And {
    fn name(&self) -> &'static str {
        "And"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        bool_like_all(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "And",
                Attrs::new(),
                vec![
                    SampleOperand::Bools { dims: vec![3], values: vec![true, false, true] },
                    SampleOperand::Bools { dims: vec![2, 1], values: vec![true, false] },
                ],
            )
            .shape_only(),
        ]
    }
}

pub(super) struct Or;

impl OpRule for Or {
    fn name(&self) -> &'static str {
        "Or"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        bool_like_all(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "Or",
                Attrs::new(),
                vec![
                    SampleOperand::Bools { dims: vec![3], values: vec![true, false, true] },
                    SampleOperand::Bools { dims: vec![2, 1], values: vec![true, false] },
                ],
            )
            .shape_only(),
        ]
    }
}

pub(super) struct Xor;

impl OpRule for Xor {
    fn name(&self) -> &'static str {
        "Xor"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        bool_like_all(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "Xor",
                Attrs::new(),
                vec![
                    SampleOperand::Bools { dims: vec![3], values: vec![true, false, true] },
                    SampleOperand::Bools { dims: vec![2, 1], values: vec![true, false] },
                ],
            )
            .shape_only(),
        ]
    }
}

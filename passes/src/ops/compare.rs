//! Comparisons, with broadcasting: a boolean of the common shape.

use super::sample::floats;
use super::*;

pub(super) struct Equal;

impl OpRule for Equal {
    fn name(&self) -> &'static str {
        "Equal"
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
        vec![Sample::of("Equal", Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])]).shape_only()]
    }
}

pub(super) struct Greater;

impl OpRule for Greater {
    fn name(&self) -> &'static str {
        "Greater"
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
        vec![Sample::of("Greater", Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])]).shape_only()]
    }
}

pub(super) struct Less;

impl OpRule for Less {
    fn name(&self) -> &'static str {
        "Less"
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
        vec![Sample::of("Less", Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])]).shape_only()]
    }
}

pub(super) struct GreaterOrEqual;

impl OpRule for GreaterOrEqual {
    fn name(&self) -> &'static str {
        "GreaterOrEqual"
    }
    fn since(&self) -> i64 {
        12
    }
    fn infer(&self, cx: &Infer) -> Types {
        bool_like_all(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("GreaterOrEqual", Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])]).shape_only()]
    }
}

pub(super) struct LessOrEqual;

impl OpRule for LessOrEqual {
    fn name(&self) -> &'static str {
        "LessOrEqual"
    }
    fn since(&self) -> i64 {
        12
    }
    fn infer(&self, cx: &Infer) -> Types {
        bool_like_all(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("LessOrEqual", Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])]).shape_only()]
    }
}

pub(super) struct IsNaN;

impl OpRule for IsNaN {
    fn name(&self) -> &'static str {
        "IsNaN"
    }
    fn since(&self) -> i64 {
        9
    }
    fn infer(&self, cx: &Infer) -> Types {
        bool_like_all(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("IsNaN", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}

pub(super) struct IsInf;

impl OpRule for IsInf {
    fn name(&self) -> &'static str {
        "IsInf"
    }
    fn since(&self) -> i64 {
        10
    }
    fn infer(&self, cx: &Infer) -> Types {
        bool_like_all(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("IsInf", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}

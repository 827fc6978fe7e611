//! `Sign`, `Floor`, `Ceil`, `Round`: constant between their steps.

use super::sample::floats;
use super::*;

pub(super) struct Sign;

impl OpRule for Sign {
    fn name(&self) -> &'static str {
        "Sign"
    }
    fn since(&self) -> i64 {
        9
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Sign", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}

pub(super) struct Floor;

impl OpRule for Floor {
    fn name(&self) -> &'static str {
        "Floor"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Floor", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}

pub(super) struct Ceil;

impl OpRule for Ceil {
    fn name(&self) -> &'static str {
        "Ceil"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Ceil", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}

pub(super) struct Round;

impl OpRule for Round {
    fn name(&self) -> &'static str {
        "Round"
    }
    fn since(&self) -> i64 {
        11
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Round", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}

//! Gradients beside losses of tract, and of an engine that does not compute the same loss.

use super::check_with;
use crate::engine::{Engine, EngineError, ExternalData, Session, Tensors, find_types, tract};
use crate::io::tensor::NpTensor;
use crate::verify::{Subject, VerifyOptions};
use ancre_passes::pipeline::PassManager;
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::text::parse;
use ancre_passes::transform::loss::{LossKind, LossOptions};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use std::path::Path;

/// tract with a fault in its forward pass: the loss comes out half as large again. Gradients that it is asked for are right.
struct Off;

impl Engine for Off {
    fn name(&self) -> &'static str {
        "off"
    }

    fn load(&self, model: &[u8], data: Option<ExternalData>) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(OffSession(tract().load(model, data)?)))
    }
}

struct OffSession(Box<dyn Session>);

impl Session for OffSession {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        let mut outputs = self.0.run(inputs)?;
        for (_, t) in outputs.iter_mut().filter(|(name, _)| *name == "loss") {
            let values: Vec<f64> = t.to_f64().iter().map(|v| 1.5 * v).collect();
            *t = NpTensor::from_f64s(t.dtype(), t.shape(), &values).unwrap();
        }
        Ok(outputs)
    }
}

fn training_graph() -> Subject {
    let network =
        "g (float[3, 4] x) => (float[3, 2] y) <float[4, 2] w = {1, -1, 0.5, 2, -0.5, 1, 0.25, -2}> { y = MatMul (x, w) }";
    let (loss, optimizer) = (LossOptions::of(LossKind::Mse), OptimizerOptions::of(OptimizerKind::None));
    let o = {
        let mut made = TrainingOptions::of(loss, optimizer);
        made.grad_outputs = true;
        made
    };
    let mut g = PassManager::default().training_graph(parse(network).unwrap(), &o).unwrap().graph;
    find_types(&mut g);
    Subject::of_graph(g, Path::new("m.ancre.train.onnx"))
}

#[test]
fn an_engine_whose_loss_is_another_does_not_judge_the_gradients() {
    let check = |gradients: &dyn Engine, losses: &dyn Engine| {
        check_with(&training_graph(), gradients, losses, &VerifyOptions::default()).unwrap()
    };
    let agreeing = check(tract().as_ref(), tract().as_ref());
    assert!(
        agreeing.passed() && !agreeing.notes.iter().any(|n| n.contains("forward values differ")),
        "{:?}",
        agreeing.notes
    );

    // The losses are then the other engine's, and the note names the one that is off.
    let judged = check(tract().as_ref(), &Off);
    assert_eq!(judged.losses, "tract");
    assert!(judged.passed() && judged.tensors.len() == 1, "{:?}", judged.tensors);
    let note = judged.notes.iter().find(|n| n.contains("the forward values differ")).unwrap();
    assert!(note.contains("by tract") && note.ends_with("off is off in the forward pass"), "{note}");

    // Gradients that do not go with the loss beside them are wrong, whichever engine is off.
    let wrong = check(&Off, tract().as_ref());
    assert_eq!(wrong.losses, "off");
    assert!(!wrong.passed() && wrong.notes.iter().any(|n| n.contains("the forward values differ")), "{:?}", wrong.notes);
}

/// tract with a kink in its loss, just beside the first weight that it is asked for.
struct Kinked;

impl Engine for Kinked {
    fn name(&self) -> &'static str {
        "kinked"
    }

    fn load(&self, model: &[u8], data: Option<ExternalData>) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(KinkedSession(tract().load(model, data)?, None)))
    }
}

struct KinkedSession(Box<dyn Session>, Option<f64>);

impl Session for KinkedSession {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        let weight = inputs["w"].to_f64()[0];
        let beside = weight - *self.1.get_or_insert(weight) - 2e-9;
        let mut outputs = self.0.run(inputs)?;
        for (_, t) in outputs.iter_mut().filter(|(name, _)| *name == "loss") {
            let values: Vec<f64> = t.to_f64().iter().map(|v| v + beside.max(0.0)).collect();
            *t = NpTensor::from_f64s(t.dtype(), t.shape(), &values).unwrap();
        }
        Ok(outputs)
    }
}

/// The first step of the difference reaches over the kink, a smaller one does not.
#[test]
fn a_kink_beside_the_point_is_no_fault_of_the_gradient() {
    let report = check_with(&training_graph(), tract().as_ref(), &Kinked, &VerifyOptions::default()).unwrap();
    assert!(report.passed(), "{:?}", report.tensors);
}

//! What a training graph wants to be fed.

use crate::error::Failure;
use crate::io::arrays::numpy_name;
pub(in crate::train) use crate::io::feed::ImageLayout;
use crate::io::feed::{Normalises, normalises};
use ancre_passes::contract::{ClassWeights, LossRecord, Record, States};
use ancre_passes::ir::{DType, Dim, Graph, ValueId};
use ancre_passes::transform::loss::LossKind;

/// What a training graph wants to be fed, per sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The model's inputs.
    pub inputs: Vec<Slot>,
    /// The targets: one for most graphs, none where a teacher is all that a loss reads.
    pub targets: Vec<Target>,
    /// Names of the inputs that weight positions.
    pub masks: Vec<String>,
    /// Batch extent, where the graph fixes it.
    pub batch: Option<usize>,
    /// What the graph does itself to normalise its image input.
    pub normalises: Option<Normalises>,
}

/// What losses compare an output with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The input that takes it.
    pub slot: Slot,
    /// Number of classes, for losses on class labels.
    pub classes: Option<usize>,
    /// Loss by name: `cross-entropy`, `next-token`, `mse`, …; the first of several that read it.
    pub loss: String,
    /// Label whose positions do not count.
    pub ignore_index: Option<i64>,
}

impl Target {
    /// Does it hold labels of classes?
    pub fn has_labels(&self) -> bool {
        LossKind::of_name(&self.loss).is_some_and(LossKind::takes_labels)
    }

    /// Does it hold probabilities?
    pub fn is_probability(&self) -> bool {
        LossKind::of_name(&self.loss).is_some_and(|kind| kind.is_binary() || kind == LossKind::Kl)
    }
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape without the batch axis; `None` is any extent, the same for all samples of a batch.
    pub shape: Vec<Option<usize>>,
    /// Is there a batch axis? Otherwise the same tensor goes into every step.
    pub batched: bool,
}

impl Slot {
    /// The layout if this is an image: three axes, float, 1, 3 or 4 channels first or last.
    pub(in crate::train) fn image(&self) -> Option<ImageLayout> {
        if self.batched { ImageLayout::of(&self.shape, self.dtype) } else { None }
    }

    /// The slot as messages name it: `x` float32 [N, 3, ?, ?], where `?` is an open extent.
    pub fn text(&self) -> String {
        let open = |d: &Option<usize>| d.map_or("?".to_string(), |n| n.to_string());
        let batch = self.batched.then(|| "N".to_string());
        let dims: Vec<String> = batch.into_iter().chain(self.shape.iter().map(open)).collect();
        format!("`{}` {} [{}]", self.name, numpy_name(self.dtype), dims.join(", "))
    }

    fn of(g: &Graph, v: ValueId, batch: Option<&Dim>) -> Result<Slot, Failure> {
        let name = g.name(v).to_string();
        let ty = g.tensor_type(v).ok_or_else(|| {
            Failure::input(format!("input `{name}` has type {}, a tensor of known rank was expected", g.value(v).ty))
        })?;
        // The target's batch symbol may have another name than the inputs'. Numbers must be equal.
        let batched = match (ty.shape.first(), batch) {
            (Some(own), Some(batch)) => own == batch || own.known().is_none(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let dims = ty.shape.iter().skip(usize::from(batched));
        let shape = dims.map(|d| d.known().and_then(|n| usize::try_from(n).ok())).collect();
        Ok(Slot { name, dtype: ty.dtype, shape, batched })
    }
}

impl Wanted {
    /// Reads it from a training graph with its losses, each with the number of its classes. Fails when the graph lacks an input that a
    /// loss reads.
    pub(in crate::train) fn of(g: &Graph, losses: &[(&LossRecord, Option<usize>)]) -> Result<Wanted, Failure> {
        let no = |what: &str| {
            Failure::input(format!("is no training graph of this tool: {what}"))
                .help("give the file STEM.ancre.train.onnx that ancre-rewrite wrote")
        };
        let mut targets: Vec<Target> = Vec::new();
        let mut found = Vec::new();
        for (record, classes) in losses {
            let Some(name) = record.target.as_deref().filter(|n| !targets.iter().any(|t| t.slot.name == *n)) else {
                continue;
            };
            let v = g
                .required_inputs()
                .find(|v| g.name(*v) == name)
                .ok_or_else(|| no(&format!("it has no input `{name}`, which its loss reads")))?;
            let slot = Slot::of(g, v, None)?;
            let (loss, ignore_index) = (record.kind.clone(), record.ignore_index);
            targets.push(Target { slot, classes: *classes, loss, ignore_index });
            found.push(v);
        }
        let fed = |record: &LossRecord| match &record.class_weights {
            Some(ClassWeights::Fed(name)) => Some(name.clone()),
            _ => None,
        };
        let weights: Vec<String> = losses.iter().filter_map(|(record, _)| fed(record)).collect();
        let states = States::read(g).map_err(|e| no(&e.to_string()))?.unwrap_or_default().0;
        let is_state = |v: ValueId| states.iter().any(|s| s.input == g.name(v));
        let is_data =
            |v: &ValueId| !found.contains(v) && !is_rate(g, *v) && !is_state(*v) && !weights.iter().any(|w| w == g.name(*v));
        let inputs: Vec<ValueId> = g.required_inputs().filter(is_data).collect();
        let first = found.first().or(inputs.first());
        let batch = first.and_then(|v| g.tensor_type(*v)).and_then(|t| t.shape.first().cloned());
        let inputs = inputs.into_iter().map(|v| Slot::of(g, v, batch.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let normalises = match &inputs[..] {
            [one] => one.image().and_then(|layout| normalises(g, g.find(&one.name)?, layout.channels)),
            _ => None,
        };
        Ok(Wanted {
            normalises,
            inputs,
            targets,
            masks: losses.iter().filter_map(|(record, _)| record.mask.clone()).collect(),
            batch: batch.and_then(|d| d.known()).and_then(|n| usize::try_from(n).ok()),
        })
    }

    /// All slots; the targets come last.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.inputs.iter().chain(self.targets.iter().map(|t| &t.slot))
    }

    /// The target that a slot is, if it is one.
    pub(super) fn target_of(&self, slot: &Slot) -> Option<&Target> {
        self.targets.iter().find(|t| t.slot == *slot)
    }

    /// The only target, for data that give one; `None` where the losses read none. `data` names the data in the error.
    pub(super) fn only_target(&self, data: &str) -> Result<Option<&Target>, Failure> {
        match &self.targets[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            _ => Err(Failure::input(format!("{data} give one target a sample, and the losses read {}", self.listed()))
                .help("give arrays named like the inputs (.npz, .safetensors, a directory of .npy files)")),
        }
    }

    /// All slots as messages list them.
    pub(super) fn listed(&self) -> String {
        self.slots().map(Slot::text).collect::<Vec<_>>().join(", ")
    }
}

/// Is this the learning rate, which the loop feeds and not the data?
fn is_rate(g: &Graph, v: ValueId) -> bool {
    matches!(g.name(v), "lr" | "ancre.lr") && g.tensor_type(v).is_some_and(|t| t.rank() == 0)
}

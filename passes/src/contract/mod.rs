//! The metadata that this tool writes into a model and reads back: one record for each key `ancre.*`, as JSON.
//!
//! | key | record | graphs |
//! |---|---|---|
//! | `ancre.router` | [`RouterRecord`] | all routed ones |
//! | `ancre.chains` | [`Chains`] | all routed ones |
//! | `ancre.adapters` | [`AdaptersRecord`] | all, where weights have adapters |
//! | `ancre.tied` | [`Ties`] | all, where parameters are tied |
//! | `ancre.fresh` | [`Fresh`] | all, where `--classes` or `--reinit` made tensors anew |
//! | `ancre.names` | [`Names`] | training |
//! | `ancre.state` | [`States`] | training and evaluation |
//! | `ancre.loss` | [`LossRecord`] | training and evaluation |
//! | `ancre.quantised` | [`Quantised`] | training and evaluation, where quantised values train |
//! | `ancre.optimizer` | [`OptimizerRecord`] | training |
//! | `ancre.half` | [`HalfRecord`] | the two graphs of a split step |
//! | [`CHECKPOINT_KEY`] | where a training run stood | none: the headers of checkpoints (.safetensors) |
//!
//! Other programs read the files: a key keeps its name, its meaning and its place in the text.

mod adapters;
mod router;

pub use adapters::{AdapterKind, AdapterRecord, AdaptersRecord, Layout};
pub use router::{ChainRecord, RouterRecord, SourceRecord};

use crate::ir::{Graph, words};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The key of a training run's position in the header of its checkpoints.
pub const CHECKPOINT_KEY: &str = "ancre.train";

/// Metadata that is no such record.
#[derive(Clone, Debug, thiserror::Error)]
#[error("its `{key}` metadata cannot be read: {why}")]
pub struct Unreadable {
    /// The key.
    pub key: &'static str,
    /// What is wrong with the text.
    pub why: String,
}

/// A name in a record that stands for nothing in the graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the graph has no `{0}`, which its metadata names")]
pub struct Absent(pub String);

/// A record and the key it has in a model's metadata.
pub trait Record: Serialize + DeserializeOwned {
    /// The key.
    const KEY: &'static str;

    /// Writes it into a graph.
    fn write(&self, g: &mut Graph) {
        g.metadata.insert(Self::KEY.into(), serde_json::to_string(self).unwrap_or_default());
    }

    /// Does the graph have such a record?
    fn is_in(g: &Graph) -> bool {
        g.metadata.contains_key(Self::KEY)
    }

    /// Reads it, if the graph has one.
    ///
    /// # Errors
    /// When the text is no such record.
    fn read(g: &Graph) -> Result<Option<Self>, Unreadable> {
        read_as(g, Self::KEY)
    }
}

/// The text of a key, if the graph has it, read as a type of the caller's.
///
/// # Errors
/// When it cannot be read so.
pub fn read_as<T: DeserializeOwned>(g: &Graph, key: &'static str) -> Result<Option<T>, Unreadable> {
    let read = |text: &String| serde_json::from_str(text).map_err(|e| Unreadable { key, why: e.to_string() });
    g.metadata.get(key).map(read).transpose()
}

/// Removes all records: this tool does not read a deployed model.
pub fn forget(g: &mut Graph) {
    g.metadata.retain(|key, _| !key.starts_with("ancre."));
}

macro_rules! keys {
    ($($record:ident = $key:literal,)+) => {
        $(impl Record for $record {
            const KEY: &'static str = $key;
        })+
    };
}

keys! {
    RouterRecord = "ancre.router",
    Chains = "ancre.chains",
    AdaptersRecord = "ancre.adapters",
    Ties = "ancre.tied",
    Fresh = "ancre.fresh",
    Names = "ancre.names",
    States = "ancre.state",
    LossRecord = "ancre.loss",
    OptimizerRecord = "ancre.optimizer",
    Quantised = "ancre.quantised",
    HalfRecord = "ancre.half",
}

/// What is quantised in a graph that trains it: its gradients go straight through rounding, and are no derivatives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantised {
    /// Names of the tensors that the source stores as integers and that are float32 here.
    pub weights: Vec<String>,
    /// Values that are quantised as they are computed.
    pub values: usize,
    /// Names of the scales that train.
    pub scales: Vec<String>,
}

impl Quantised {
    /// Is nothing quantised?
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty() && self.values == 0
    }
}

/// The residual chains of the source, routed or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chains(pub Vec<ChainStates>);

/// One chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChainStates {
    /// Its number.
    pub id: usize,
    /// Its residual adds.
    pub blocks: usize,
    /// The nodes of the adds.
    pub adds: Vec<String>,
    /// The values h_0 … h_K.
    pub states: Vec<String>,
}

/// Pairs of tensors that are one parameter. Empty where ties were found but not wanted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ties(pub Vec<Tie>);

/// A parameter under two names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tie {
    /// The tensor that is the parameter.
    pub name: String,
    /// The tensor that holds its transpose.
    pub transposed: String,
    /// It holds the parameter as it is, not its transpose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copy: bool,
}

/// Tensors that start afresh, untrained.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fresh {
    /// Every trained weight is one.
    pub all: bool,
    /// Names of those of a replaced classifier.
    pub tensors: Vec<String>,
}

/// Names of the outputs of a training graph, and where its inputs come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Names {
    /// The loss.
    pub loss: String,
    /// The global norm of the gradients.
    pub grad_norm: String,
    /// Where the state starts from.
    #[serde(default = "StateFrom::inline", rename = "state")]
    pub state_from: StateFrom,
}

impl StateFrom {
    fn inline() -> StateFrom {
        StateFrom::Inline
    }
}

/// The state of a training graph, in output order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct States(pub Vec<StateRecord>);

words! {
    /// Where the state of a training graph starts from.
    StateFrom {
        /// A graph without inputs beside it, whose outputs are the state: `STEM.ancre.init.onnx`.
        Init = "init",
        /// Defaults in the graph.
        Inline = "inline",
        /// A file of tensors beside it: `STEM.ancre.state.safetensors`.
        Separate = "separate",
    }
    /// Whether a step is one graph.
    StepForm {
        /// `STEM.ancre.train.onnx`: from a batch to the next state.
        Whole = "whole",
        /// `STEM.ancre.grad.onnx`, from a batch to gradients, and `STEM.ancre.update.onnx`, from gradients to the next state: what
        /// stands between them may sum gradients over batches or processes.
        Split = "split",
    }
    /// One of the graphs of a split step.
    Half {
        /// From a batch to loss, gradients and running statistics.
        Gradients = "gradients",
        /// From gradients to the next state.
        Update = "update",
    }
    /// What a state tensor is.
    StateKind {
        /// A weight.
        Parameter = "parameter",
        /// A router's logits.
        Logits = "logits",
        /// A router's gate.
        Gate = "gate",
        /// The scale of quantised values.
        Scale = "scale",
        /// A moment of the optimiser.
        Moment = "moment",
        /// A running statistic of a normalisation.
        Statistic = "statistic",
        /// A sum of gradients over micro-batches.
        Accumulator = "accumulator",
        /// The number of steps done.
        Counter = "counter",
        /// The loss scale of float16 (`ancre.loss_scale`), and its counters of good and of skipped updates.
        LossScale = "loss-scale",
    }
}

impl StateKind {
    /// Is it trained?
    pub fn trains(self) -> bool {
        matches!(self, StateKind::Parameter | StateKind::Scale) || self.is_router()
    }

    /// Is it of the router's group, which has its own learning rate and does not decay?
    pub fn is_router(self) -> bool {
        matches!(self, StateKind::Logits | StateKind::Gate)
    }
}

/// A state tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateRecord {
    /// Name of the tensor.
    pub name: String,
    /// Graph input that takes it.
    pub input: String,
    /// Graph output that gives its next value.
    pub output: Option<String>,
    /// What it is.
    pub kind: StateKind,
    /// Is it trained?
    pub trainable: bool,
    /// Full shape.
    pub shape: Vec<i64>,
    /// May the output be bound to the input's memory?
    #[serde(default)]
    pub in_place: bool,
}

impl StateRecord {
    /// A state tensor without a next value, fed under its own name.
    pub fn new(name: &str, kind: StateKind, shape: Vec<i64>) -> StateRecord {
        let (name, input) = (name.to_string(), name.to_string());
        StateRecord { name, input, output: None, kind, trainable: kind.trains(), shape, in_place: false }
    }
}

/// The loss of a training or evaluation graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LossRecord {
    /// Its name on the command line.
    pub kind: String,
    /// `mean` or `sum`.
    pub reduction: String,
    /// The target input; null where there is none.
    pub target: Option<String>,
    /// The model output that the loss reads.
    pub output: Option<String>,
    /// Axis of the classes in that output, where targets are labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_axis: Option<usize>,
    /// Label smoothing.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Label that does not count.
    pub ignore_index: Option<i64>,
    /// Threshold of the Huber loss.
    pub huber_delta: Option<f64>,
    /// Weights of the classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// γ of a focal loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub focal_gamma: Option<f64>,
    /// What Dice adds above and below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dice_smooth: Option<f64>,
    /// The input that weights positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// CTC's class that stands for no label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blank: Option<i64>,
    /// CTC's inputs of the numbers of frames and of labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<[String; 2]>,
    /// Temperature of a distillation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Its factor in the sum, where it is one of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// The output that gives it by itself, before its factor, where it is one of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// All losses, this one first, where there are several: `loss` is the sum of their values times their factors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<LossRecord>,
}

impl LossRecord {
    /// All losses, in order.
    pub fn all(&self) -> Vec<LossRecord> {
        if self.terms.is_empty() { vec![self.clone()] } else { self.terms.clone() }
    }
}

/// Weights of the classes of a loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ClassWeights {
    /// One a class.
    Given(Vec<f64>),
    /// The graph's input that takes them: by the training data, one a class.
    Fed(String),
}

/// What one graph of a split step is to the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HalfRecord {
    /// Which of the two it is.
    pub half: Half,
    /// Outputs of the one and inputs of the other, in the order of the tensors that train.
    pub gradients: Vec<GradientRecord>,
}

/// A gradient that one graph of a split step hands to the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GradientRecord {
    /// The tensor that trains.
    pub tensor: String,
    /// Output or input.
    pub name: String,
}

/// The optimiser of a training graph. Numbers that its kind does not have are left out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimizerRecord {
    /// `adamw`, `adam`, `sgd` or `none`.
    pub kind: String,
    /// Decay rates of Adam's moments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Added to the root of Adam's second moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Momentum of SGD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Is it Nesterov's?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nesterov: Option<bool>,
    /// Name of the learning rate's input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<String>,
    /// Weight decay of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Largest global gradient norm; null where there is no clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<Option<f64>>,
    /// Micro-batches per update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accumulate: Option<u32>,
    /// Learning rate of the router relative to the weights'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_lr_scale: Option<f64>,
    /// Tensors with a rate and a decay of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupRecord>,
}

/// A group of parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// The pattern of their names.
    pub pattern: String,
    /// Learning rate, relative to what it would be.
    pub lr_scale: f64,
    /// Weight decay; null: what it would be.
    pub weight_decay: Option<f64>,
    /// Names of the tensors.
    pub tensors: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files written before are read, and what is written has its keys in the same order.
    #[test]
    fn records_keep_their_text() {
        fn same<R: Record>(text: &str) {
            let mut g = Graph::default();
            g.metadata.insert(R::KEY.into(), text.into());
            let record = R::read(&g).unwrap().unwrap();
            record.write(&mut g);
            assert_eq!(g.metadata[R::KEY], text);
            g.metadata.insert(R::KEY.into(), "{".into());
            assert!(R::read(&g).is_err());
        }
        same::<RouterRecord>(
            r#"{"form":"reassign","granularity":"add","scope":"network","parametrization":"gated","init":"uniform","tau":0.01,"normalize":"incoming","chains":[{"id":1,"K":2,"adds_per_block":1,"logits":"l","gate":null,"sources":[{"state":"a","value":"b"}],"states":["x","y","z"],"rows":[[1,"r"]]}]}"#,
        );
        same::<Chains>(r#"[{"id":0,"blocks":1,"adds":["a"],"states":["x","y"]}]"#);
        same::<AdaptersRecord>(
            r#"{"rank":4,"alpha":8.0,"adapters":[{"weight":"w","a":"w.lora_a","b":"w.lora_b","node":"n","kind":"conv","layout":"out-in","quantised":false}]}"#,
        );
        same::<Ties>(r#"[{"name":"a","transposed":"b"},{"name":"c","transposed":"d","copy":true}]"#);
        same::<Fresh>(r#"{"all":false,"tensors":["fc.weight"]}"#);
        same::<States>(
            r#"[{"name":"w","input":"w","output":"w.next","kind":"parameter","trainable":true,"shape":[2],"in_place":true}]"#,
        );
        same::<LossRecord>(
            r#"{"kind":"mse","reduction":"mean","target":"t","output":"y","label_smoothing":0.0,"ignore_index":null,"huber_delta":1.0}"#,
        );
        same::<HalfRecord>(r#"{"half":"gradients","gradients":[{"tensor":"w","name":"w.grad"}]}"#);
        same::<OptimizerRecord>(r#"{"kind":"none"}"#);
        same::<OptimizerRecord>(
            r#"{"kind":"sgd","momentum":0.9,"nesterov":false,"lr":"lr","weight_decay":0.0,"clip_norm":1.0,"accumulate":1,"router_lr_scale":1.0}"#,
        );
        let o = OptimizerRecord { kind: "adam".into(), clip_norm: Some(None), ..OptimizerRecord::default() };
        assert_eq!(serde_json::to_string(&o).unwrap(), r#"{"kind":"adam","clip_norm":null}"#);
    }
}

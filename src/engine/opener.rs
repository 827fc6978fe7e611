//! Opening emitted models in an engine, beside what this process does meanwhile: a graph that nothing can load is not handed over.

use super::{Engine, EngineError, ExternalData};
use ancre_passes::ir::SharedBytes;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// A model to open.
pub struct Model {
    /// Its bytes.
    pub bytes: SharedBytes,
    /// The directory where its external data lies, and how many bytes that has.
    pub data: Option<(PathBuf, u64)>,
}

/// An engine that opens models one after the other: ONNX Runtime where there is one, else tract.
pub struct Opener {
    models: Sender<Model>,
    results: JoinHandle<Opened>,
}

/// The engine's name and what came of each model in turn; `None` where no engine is at hand.
pub type Opened = Option<(&'static str, Vec<Result<(), EngineError>>)>;

impl Opener {
    /// Finds the engine and loads it.
    pub fn start() -> Opener {
        let (models, asked) = channel::<Model>();
        let results = std::thread::spawn(move || {
            let engine = engine()?;
            engine.warm_up();
            let open = |m: Model| {
                let data = m.data.as_ref().map(|(root, bytes)| ExternalData { root, bytes: *bytes });
                engine.open(&m.bytes, data)
            };
            Some((engine.name(), asked.into_iter().map(open).collect()))
        });
        Opener { models, results }
    }

    /// Adds a model.
    pub fn open(&self, model: Model) {
        // Where no engine is at hand nobody listens.
        let _ = self.models.send(model);
    }

    /// Waits for all models.
    pub fn finish(self) -> Opened {
        drop(self.models);
        self.results.join().ok().flatten()
    }
}

/// The engine that opens models, if there is one.
pub fn engine() -> Option<Box<dyn Engine>> {
    super::ort().ok().or_else(|| cfg!(feature = "tract").then(super::tract))
}

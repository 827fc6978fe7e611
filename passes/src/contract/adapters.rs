//! `ancre.adapters`: the low-rank adapters of a graph, their tensors by name.

use crate::ir::words;
use serde::{Deserialize, Serialize};

/// The adapters of a graph: W′ = W + (alpha / rank) · A B for each of their weights, viewed as a matrix [in, out].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdaptersRecord {
    /// Columns of every A and rows of every B.
    pub rank: i64,
    /// Numerator of the factor.
    pub alpha: f64,
    /// One for each weight.
    pub adapters: Vec<AdapterRecord>,
}

/// The adapter of one weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterRecord {
    /// The weight's initializer.
    pub weight: String,
    /// Initializer of A, [in, rank].
    pub a: String,
    /// Initializer of B, [rank, out].
    pub b: String,
    /// The first node that reads the weight.
    pub node: String,
    /// What the weight is.
    pub kind: AdapterKind,
    /// How the weight lies in its initializer.
    pub layout: Layout,
    /// Is the weight stored in integers?
    #[serde(default)]
    pub quantised: bool,
}

words! {
    /// What an adapted weight is.
    AdapterKind {
        /// A matrix that a product reads.
        Linear = "linear",
        /// The kernel of a convolution; in counts its channels and taps.
        Conv = "conv",
        /// A table whose rows a look-up takes.
        Embedding = "embedding",
    }
    /// How a weight lies in its initializer.
    Layout {
        /// [in, out].
        InOut = "in-out",
        /// [out, in], or [out, channels, taps…] of a convolution.
        OutIn = "out-in",
    }
}

impl AdaptersRecord {
    /// The factor of A B.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// The names of all A and B.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.adapters.iter().flat_map(|a| [a.a.as_str(), a.b.as_str()])
    }
}

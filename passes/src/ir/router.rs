//! Routers: the objects that the operators `ancre.Route` and its cotangents name by their id.

use super::{Graph, ValueId};

/// Enums whose variants have a word each, in files and on the command line.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$about])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// The words of all variants, in order.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The variant's word.
            pub fn name(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)+
                }
            }

            /// The variant of that word.
            pub fn of_name(word: &str) -> Option<$name> {
                match word {
                    $($word => Some($name::$variant),)+
                    _ => None,
                }
            }
        }
    )+};
}

pub(crate) use words;

words! {
    /// How a block takes its route.
    Form {
        /// The identity skip is replaced by the route: the original network at one-hot.
        Reassign = "reassign",
        /// The route is added to the whole block's output: for training from scratch.
        Augment = "augment",
        /// The route is all that the block reads, its skip and its branch: the original network at one-hot.
        Input = "input",
    }
    /// The weights of a row.
    Rule {
        /// softmax(c / τ).
        Softmax = "softmax",
        /// onehot + a · (softmax(c / τ) − onehot).
        Gated = "gated",
        /// c itself.
        Free = "free",
        /// Frozen, uniform.
        Constant = "constant",
        /// At each position softmax over ⟨q, s / rms(s)⟩ of the sources s, with a learned query q for each row (arXiv 2603.15031).
        Attention = "attention",
    }
    /// Over what the softmax is taken.
    Normalize {
        /// Over the sources of a row.
        Incoming = "incoming",
        /// Over the targets of a source.
        Outgoing = "outgoing",
    }
    /// What the columns of a chain's own states stand for.
    Sources {
        /// The states h_i.
        States = "states",
        /// What each block added to what its skip began at, after h_0 (arXiv 2605.18855): h_i − h_{i−1}, and under `input` h_i less the route
        /// that the block read. With weights of one their sum is the nearest state.
        Deltas = "deltas",
    }
    /// Which states a row may read.
    Scope {
        /// Those of its own chain.
        Stage = "stage",
        /// Also those of earlier chains that come before it, where they can be brought to its shape.
        Network = "network",
    }
}

/// A router, by the number of its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouterId(pub usize);

impl std::fmt::Display for RouterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// An earlier chain's state among a router's sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// The state.
    pub state: ValueId,
    /// The state brought to the chain's shape; the state itself where it fits.
    pub value: ValueId,
}

/// Which rows of a router have a route, and which states of their own chain they read. Each number is at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sparsity {
    /// A row reads its nearest state and every so many before it (arXiv 2402.02622).
    pub dilation: usize,
    /// Every so many rows have a route, from the first on; the other blocks stay as they are (arXiv 2402.02622).
    pub period: usize,
    /// A row reads every so many states, from the first on, and its nearest: the results of whole blocks, and of its own as far as
    /// that has come (arXiv 2603.15031).
    pub summaries: usize,
}

/// The all-pairs router of one chain of K blocks.
///
/// Its matrix has a row for each block and a column for each source: first the S states of earlier chains, then the chain's own
/// h_0 … h_{K−1}. Row k (0-based) reads the columns 0 … S + k.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterSpec {
    /// How a block takes its route.
    pub form: Form,
    /// What the logits mean.
    pub rule: Rule,
    /// Over what the softmax is taken.
    pub normalize: Normalize,
    /// The softmax's temperature.
    pub tau: f32,
    /// What the columns of the chain's own states stand for.
    pub taken: Sources,
    /// Which rows have a route, and which states they read.
    pub sparsity: Sparsity,
    /// Axis of the features under `attention`.
    pub axis: usize,
    /// Number of features under `attention`.
    pub features: usize,
    /// Which states the rows were allowed to read.
    pub scope: Scope,
    /// How blocks were asked for: `add`, `block` or a number of adds.
    pub granularity: String,
    /// Where the logits started.
    pub init: String,
    /// Residual adds in one block.
    pub adds_per_block: usize,
    /// Logits [K, S + K]; the weights themselves under `constant` and `free`; queries [K, features] under `attention`.
    pub logits: ValueId,
    /// Gate, K elements.
    pub gate: Option<ValueId>,
    /// Earlier chains' states that every row reads, S of them, in execution order.
    pub sources: Vec<Source>,
    /// Block states h_0 … h_K as they are in the routed graph.
    pub states: Vec<ValueId>,
    /// Under `input` with deltas: the values of the chain's own columns from the second on. Otherwise these columns' states are, or
    /// differences of them.
    pub deltas: Vec<ValueId>,
    /// Rows that have a route, in order, with the route's sum. A row that reads a single source with weight 1 has no route.
    pub rows: Vec<(usize, ValueId)>,
}

impl RouterSpec {
    /// Number of blocks K.
    pub fn blocks(&self) -> usize {
        self.states.len().saturating_sub(1)
    }

    /// Number of columns, S + K.
    pub fn width(&self) -> usize {
        self.sources.len() + self.blocks()
    }

    /// Number of columns that a row reads.
    pub fn reads(&self, row: usize) -> usize {
        self.sources.len() + row + 1
    }

    /// The values of the columns.
    pub fn columns(&self) -> impl Iterator<Item = ValueId> + '_ {
        let own = self.states.iter().take(if self.deltas.is_empty() { self.states.len() } else { 1 });
        self.sources.iter().map(|s| s.value).chain(own.chain(&self.deltas).copied()).take(self.width())
    }

    /// Are the own columns' values states, of which the rows sum up differences?
    pub fn weighs_differences(&self) -> bool {
        self.taken.are_differences(self.form)
    }

    /// Do the logits, and the gate if there is one, train?
    pub fn trains(&self) -> bool {
        self.rule != Rule::Constant
    }

    /// Is a row's weight of a column in use?
    pub fn uses(&self, row: usize, column: usize) -> bool {
        self.sparsity.uses(row, column, self.sources.len())
    }

    /// The columns that a row weighs, in order.
    pub fn weighed(&self, row: usize) -> impl Iterator<Item = usize> + '_ {
        self.sparsity.weighed(row, self.sources.len())
    }

    /// The column whose state a column's delta begins at; `None` where the column stands for its state.
    pub fn delta_from(&self, column: usize) -> Option<usize> {
        self.weighs_differences().then(|| self.sparsity.delta_from(column, self.sources.len())).flatten()
    }

    /// Number of logits in use: row k competes among S + k sources. Under `attention` the elements of the queries in use.
    pub fn coefficients(&self) -> usize {
        let (blocks, width) = (self.blocks(), self.width());
        if self.rule == Rule::Attention {
            // A row that reads a single source weighs nothing.
            return (blocks - self.sources.is_empty() as usize) * self.features;
        }
        if self.sparsity == Sparsity::NONE {
            return blocks * (blocks + 1) / 2 + blocks * self.sources.len();
        }
        (0..blocks * width).filter(|i| self.uses(i / width, i % width)).count()
    }

    /// Can its parameters make every row its nearest state alone? A softmax never sums its deltas with weight one each, and attention gives
    /// every source some weight.
    pub fn has_one_hot(&self) -> bool {
        match self.rule {
            Rule::Attention => false,
            Rule::Softmax | Rule::Constant => self.taken == Sources::States,
            // Under `input` deltas are values of their own, which sum up to the nearest state but for rounding.
            Rule::Gated | Rule::Free => !self.taken.are_values(self.form),
        }
    }

    /// Number of gates in use. A first row without a competitor has none.
    pub fn gates(&self) -> usize {
        if self.gate.is_some() { self.blocks() - self.sources.is_empty() as usize } else { 0 }
    }

    /// Every value it names.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        let sources = self.sources.iter().flat_map(|s| [s.state, s.value]);
        let own = [self.logits].into_iter().chain(self.gate);
        own.chain(sources).chain(self.states.iter().chain(&self.deltas).copied()).chain(self.rows.iter().map(|(_, v)| *v))
    }

    /// Names `new` wherever it names `old`.
    pub fn redirect(&mut self, old: ValueId, new: ValueId) {
        let sources = self.sources.iter_mut().flat_map(|s| [&mut s.state, &mut s.value]);
        let own = [&mut self.logits].into_iter().chain(&mut self.gate);
        let states = self.states.iter_mut().chain(&mut self.deltas);
        let all = own.chain(sources).chain(states).chain(self.rows.iter_mut().map(|(_, v)| v));
        all.filter(|v| **v == old).for_each(|v| *v = new);
    }
}

impl Sources {
    /// Are they differences of the states that a router of this form holds?
    pub fn are_differences(self, form: Form) -> bool {
        self == Sources::Deltas && form != Form::Input
    }

    /// Are they values of their own beside the states?
    pub fn are_values(self, form: Form) -> bool {
        self == Sources::Deltas && form == Form::Input
    }
}

impl Sparsity {
    /// Every row has a route and reads every state.
    pub const NONE: Sparsity = Sparsity { dilation: 1, period: 1, summaries: 1 };

    /// Does a row's weight of a column count, after so many columns of earlier chains? Those are read by every row that has a route.
    pub fn uses(self, row: usize, column: usize, foreign: usize) -> bool {
        let nearest = foreign + row;
        let own = || {
            let summary = column == nearest || (column - foreign).is_multiple_of(self.summaries.max(1));
            column <= nearest && (nearest - column).is_multiple_of(self.dilation.max(1)) && summary
        };
        row.is_multiple_of(self.period.max(1)) && (column < foreign || own())
    }

    /// The columns that a row weighs, in order.
    pub fn weighed(self, row: usize, foreign: usize) -> impl Iterator<Item = usize> {
        (0..=foreign + row).filter(move |column| self.uses(row, *column, foreign))
    }

    /// The column at which a column's delta begins: the last one before it that rows from there on read. `None`: it has no delta.
    fn delta_from(self, column: usize, foreign: usize) -> Option<usize> {
        (column > foreign).then(|| column - 1 - (column - 1 - foreign) % self.summaries.max(1))
    }
}

impl Graph {
    /// Removes the routers that name a value which is gone.
    pub fn drop_dead_routers(&mut self) {
        let mut routers = std::mem::take(&mut self.routers);
        routers.retain(|_, r| r.values().all(|v| self.contains(v)));
        self.routers = routers;
    }
}

#[cfg(test)]
mod tests {
    use crate::ir::{Attrs, Op};
    use crate::text::{parse, print};
    use crate::transform::eliminate::eliminate_dead;

    const TEXT: &str = r#"g (float[2] h0, float[2] f) => (float[2] h2) <float[2, 2] l = {…}> {
        h1 = Add (h0, f)  r = ancre.Route <router = 3, row = 1> (l, , h0, h1)  h2 = Add (r, f)
        @3 <form = "reassign", rule = "softmax", normalize = "incoming", scope = "stage"> (l, ) () () (h0, h1, h2) (, r) }"#;

    /// A router is the same after its graph was copied or written as text, follows a value that is replaced, and goes with the
    /// values it names.
    #[test]
    fn a_router_survives_its_graph_s_changes() {
        let mut g = parse(TEXT).unwrap();
        assert_eq!(g.clone().routers, g.routers);
        let again = parse(&print(&g)).unwrap();
        assert_eq!(print(&again), print(&g));
        assert_eq!((again.routers[0].reads(1), again.routers[0].rows.len()), (2, 1));
        let (h0, h1, f) = (g.find("h0").unwrap(), g.find("h1").unwrap(), g.find("f").unwrap());
        let other = g.add_op("other", Op::new("Sub", Attrs::new()), &[Some(h0), Some(f)]);
        let other = g.push_result(other, "other", g.value(h1).ty.clone());
        g.redirect(h1, other);
        assert_eq!(g.routers[0].states[1], other);
        assert_eq!(eliminate_dead(&mut g, |_, _| false), 1);
        assert_eq!(g.routers.len(), 1);
        let h2 = g.find("h2").unwrap();
        g.redirect_output(h2, f);
        eliminate_dead(&mut g, |_, _| false);
        assert!(g.routers.is_empty());
    }
}

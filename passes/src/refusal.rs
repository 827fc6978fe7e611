//! Refusals: why a pass left a node as it is, and what the user may do about an error. Both are values. The tool puts them into words
//! that name its options.

use crate::ir::NodeSite;
use std::fmt;

/// A node that a pass left as it is, and why. Kept until an error about the node needs the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The node.
    pub site: NodeSite,
    /// The reason.
    pub why: Why,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.site, self.why)
    }
}

/// Why a node is left as it is. The text's subject is the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Why {
    /// The type of a value it reads or writes is not known, or not far enough.
    #[error("{0}")]
    UnknownType(String),
    /// An extent has to be a number and is not.
    #[error("the extent {extent} of `{value}` has to be a number")]
    DynamicExtent { value: String, extent: String },
    /// An operand has to be a constant and is computed.
    #[error("its operand `{0}` has to be a constant")]
    Computed(String),
    /// An attribute has a value that has no plain form.
    #[error("its attribute `{attribute}` is {value}, which has no plain form here")]
    Attribute { attribute: &'static str, value: String },
    /// An operand or a result belongs to a feature that has no plain form, such as a key cache.
    #[error("it uses {0}, which has no plain form here")]
    Feature(&'static str),
    /// A form that is not supported, in words that follow "it".
    #[error("it {0}")]
    Form(String),
    /// A required operand is missing.
    #[error("its operand {0} is missing")]
    Missing(usize),
    /// A subgraph reads its result, or it has subgraphs itself.
    #[error("a subgraph takes part in it")]
    Subgraph,
    /// It does not keep the samples of a batch apart, or not where they are.
    #[error("{0}")]
    Samples(String),
    /// What it does is only known when it runs, because of these inputs and extents.
    #[error("{what} is only known when the graph runs{}", waits_for(.by))]
    Undecided {
        what: &'static str,
        by: Vec<String>,
        /// Can all of these have one value in the training graph?
        fixable: bool,
    },
    /// Its replacement could not be built.
    #[error("its plain form could not be built: {0}")]
    Unbuildable(String),
}

impl<S: Into<String>> From<S> for Why {
    fn from(why: S) -> Why {
        Why::Samples(why.into())
    }
}

fn waits_for(open: &[String]) -> String {
    let names: Vec<String> = open.iter().map(|n| format!("`{n}`")).collect();
    if names.is_empty() { String::new() } else { format!(", from {}", names.join(", ")) }
}

impl Why {
    /// What a person may do about it.
    pub fn hint(&self) -> Option<Hint> {
        let waits = match self {
            Why::DynamicExtent { .. } => true,
            Why::Undecided { fixable, .. } => *fixable,
            _ => false,
        };
        waits.then_some(Hint::FixInput)
    }

    /// The refusal of a node for this reason.
    pub fn at(self, site: NodeSite) -> Refusal {
        Refusal { site, why: self }
    }
}

/// What the user may do about an error of this library. The tool names the option for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Choose the output that the loss reads.
    ChooseOutput,
    /// Say which axis holds the classes.
    ChooseClassAxis,
    /// Choose a loss.
    ChooseLoss,
    /// Name parameters that are to train.
    NameTrainable,
    /// Freeze fewer parameters.
    FreezeLess,
    /// Correct the list of what trains.
    CorrectTrainableList,
    /// Train more than the head.
    TrainBackbone,
    /// Skip the comparison.
    SkipVerification,
    /// Put more adds into a block.
    LargerBlocks,
    /// Make every add a block.
    SingleAdds,
    /// Choose a temperature above zero.
    Temperature,
    /// Leave out every so many states or rows of free weights.
    SparseRows,
    /// Use attention, or free weights of states.
    Summaries,
    /// Put routes in the place of skips alone.
    Reassign,
    /// Use weights without a gate.
    NoGate,
    /// Normalise over a row's sources.
    NormalizeIncoming,
    /// Choose a start that the parametrisation can have.
    ChooseInit,
    /// Correct the file of starting values.
    CorrectInitFile,
    /// Give an input or an extent one value.
    FixInput,
    /// Say which weights get adapters.
    ChooseAdapted,
    /// Freeze what lies before a node.
    FreezeBefore,
}

/// What a pass did.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Number of changes, in the pass's own unit (nodes, parameters, chains).
    pub changed: usize,
    /// Places that it is meant to change and left as they are, and why.
    pub refused: Vec<Refusal>,
    /// Changes that are still allowed, where there is a limit.
    pub left: Option<usize>,
    /// Where the last change was made under a limit.
    pub last: Option<String>,
}

impl Applied {
    /// A number of changes.
    pub fn of(changed: usize) -> Applied {
        Applied { changed, ..Applied::default() }
    }

    /// Counts a change, unless the limit is reached. A pass that may leave a place as it is asks before it changes the place.
    pub fn allows(&mut self, place: &dyn fmt::Display) -> bool {
        if let Some(left) = &mut self.left {
            if *left == 0 {
                return false;
            }
            *left -= 1;
            self.last = Some(place.to_string());
        }
        self.changed += 1;
        true
    }
}

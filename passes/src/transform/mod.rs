//! Passes that change a graph, and the parts of training graphs.

pub mod adapters;
pub mod auto_loss;
pub mod bake;
mod class_axis;
pub mod classes;
pub mod control_flow;
pub mod coverage;
mod differentiate;
pub mod dropout;
pub mod eliminate;
pub mod fix_inputs;
pub mod fold;
pub mod fresh;
mod glob;
pub(crate) mod in_place;
pub mod initial_state;
pub mod legalize;
pub mod lift;
pub mod loss;
pub mod lower_abstract;
pub mod lower_attention;
pub mod lower_routes;
pub mod master;
pub mod optimizer;
pub mod rebatch;
pub mod recompute;
pub mod reinit;
pub mod route;
pub mod separate;
pub mod tie;
pub mod to_double;
pub mod train_batch_norm;
mod update;
pub mod widen;

pub use differentiate::{Gradients, barrier, differentiate, differentiate_past};
pub use glob::glob;

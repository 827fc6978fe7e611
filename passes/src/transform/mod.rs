//! Passes that change a graph, and the parts of training graphs.

pub mod bake;
pub mod classes;
mod differentiate;
pub mod dropout;
pub mod eliminate;
pub mod evaluation;
pub mod fold;
pub mod fresh;
mod in_place;
pub mod inline;
pub mod legalize;
pub mod loss;
pub mod lower_routes;
pub mod master;
pub mod optimizer;
pub mod rebatch;
pub mod reinit;
pub mod route;
pub mod separate;
pub mod tie;
pub mod train_batch_norm;
pub mod training;
mod update;
pub mod widen;

pub use differentiate::{Gradients, differentiate};

//! Read-only facts about graphs.
pub mod residual;
pub mod roles;

pub mod facts;

//! Read-only facts about graphs.
pub mod residual;
pub mod roles;

pub mod facts;
pub mod dot;
pub mod explain;
pub mod report;

//! Read-only facts about graphs.

pub mod dot;
pub mod explain;
pub mod head;
pub(crate) mod origin;
pub mod picture;
pub mod quantised;
pub mod report;
pub mod residual;
pub mod roles;
pub mod stored;
pub mod types;

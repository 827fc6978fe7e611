//! Read-only facts about graphs.

pub mod facts;

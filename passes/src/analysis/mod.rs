//! Read-only facts about graphs.

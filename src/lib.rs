//! `ancre-rewrite` as a library: everything of the tool that touches the outside world. The graph work is in `ancre-passes`.

pub mod engine;
pub mod random_inputs;
pub mod tensor;
pub mod verify;

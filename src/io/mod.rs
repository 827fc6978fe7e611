//! Files: models, arrays and tensors in and out. What is written appears whole or not at all.

pub(crate) mod arrays;
pub(crate) mod feed;
pub mod files;
pub(crate) mod lines;
pub(crate) mod outputs;
pub mod tensor;

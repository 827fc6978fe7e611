//! Tensors that go into and come out of engines.

//! macOS links an extension only when it is told that Python's symbols come later. maturin tells it; a plain `cargo build` learns it here.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}

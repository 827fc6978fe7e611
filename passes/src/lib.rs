//! The compiler passes of `ancre-rewrite`: from an ONNX graph to one whose blocks may read every earlier state, and to its
//! training graph. Links no runtime and writes no file; what touches the outside world is in the crate `ancre-rewrite`.
//!
//! ```text
//!  onnx ──► ir ──► analysis ──► transform ──► onnx
//!  import         residual adds,  router, gradient, optimiser,      emit
//!                 types, roles    lowering to ONNX operators
//! ```
//!
//! - [`ir`] is the graph: values and nodes, [types](ir::TensorType) with [symbolic extents](ir::Dim), a
//!   [builder](ops::build::Builder) that infers the type of what it adds, a [verifier](verify), a [text form](text).
//! - [`onnx`] reads a model into it and writes it back; what no pass touched comes out as it went in.
//! - [`ops`] holds one rule an operator: its types and its pullback. To support another operator, add its file.
//! - [`analysis`] finds the [residual adds](analysis::residual), completes [types](analysis::types), and tells which constants
//!   [train](analysis::roles).
//! - [`transform`] has the passes. [`pipeline`] lists them in order, each with what must hold before and after it.
//! - [`proof`] shows that two graphs compute the same, by canonical forms.
//!
//! [`pipeline::rewrite::rewrite`] is all of it in one call.
//!
//! # Floor plan
//!
//! A module uses modules of lower floors only; `passes/tests/floors.rs` holds it, for both crates.
//!
//! | floor | modules | what they are |
//! | --- | --- | --- |
//! | 8 | `pipeline` | the passes in order |
//! | 7 | `placement`, `proof` | what runs where; are two graphs the same? |
//! | 6 | `transform` | one pass a file |
//! | 5 | `analysis` | facts about graphs |
//! | 4 | `text`, `verify` | the text form; the invariants |
//! | 3 | `ops` | one rule an operator; builder and evaluator |
//! | 2 | `onnx` | files to graphs and back |
//! | 1 | `contract`, `random`, `refusal`, `target` | records in files; numbers; reasons; costs |
//! | 0 | `ir` | the graph |
//!
//! ```
//! use ancre_passes::analysis::residual::find_residuals;
//! use ancre_passes::text::parse;
//!
//! let g = parse("net (float[n, 4] x) => (h) <float[4, 4] w = {…}> { f = MatMul (x, w) h = Add (x, f) }").unwrap();
//! let found = find_residuals(&g);
//! assert_eq!(found.chains.len(), 1);
//! assert_eq!(g.name(found.chains[0].joins[0].sum), "h");
//! ```

/// The code of README.md.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod analysis;
pub mod contract;
pub mod ir;
pub mod onnx;
pub mod ops;
pub mod pipeline;
pub mod placement;
pub mod proof;
pub mod random;
pub mod refusal;
pub mod target;
pub mod text;
pub mod transform;
pub mod verify;

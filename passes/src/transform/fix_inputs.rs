//! Gives an integer input, or an extent of inputs, the one value it has from now on.
//!
//!   before  net (float[n, t] x, int64 rate) => …      t=512 rate=16000
//!   after   net (float[n, 512] x) => …                with the constant rate = {16000}
//!
//! The same function where they have these values.

use super::rebatch;
use crate::ir::{DType, Dim, Graph, Kind, Tensor, ValueId};
use crate::ops::eval::places::count;

/// Elements that an input may be filled with.
const LARGEST: usize = 1 << 16;

/// Fixes each; says of the first name that cannot be fixed what can.
///
/// # Errors
/// When neither an integer input of known, small shape nor an extent has the name.
pub fn fix_inputs(g: &mut Graph, fixed: &[(String, i64)]) -> Result<usize, String> {
    for (name, n) in fixed {
        let input = g.find(name).and_then(|v| Some((v, filled(g, v, *n)?)));
        if let Some((v, constant)) = input {
            g.set_initializer(v, constant, false);
        } else if extents(g).contains(name) {
            rebatch::fix(g, &Dim::symbol(name), *n);
        } else {
            let integers = g.required_inputs().filter(|v| filled(g, *v, 0).is_some()).map(|v| g.name(v).to_string());
            let all: Vec<String> = integers.chain(extents(g)).map(|n| format!("`{n}`")).collect();
            let all = if all.is_empty() { "it has none".to_string() } else { format!("it has {}", all.join(", ")) };
            return Err(format!("the model has no integer input and no symbolic extent `{name}` to be fixed; {all}"));
        }
    }
    Ok(fixed.len())
}

/// The names in the shapes of the inputs.
fn extents(g: &Graph) -> Vec<String> {
    let shapes = g.required_inputs().filter_map(|v| g.value(v).ty.shape.as_ref());
    let mut names: Vec<String> = shapes.flatten().flat_map(Dim::symbols).map(str::to_string).collect();
    names.sort();
    names.dedup();
    names
}

/// The constant of an integer input of up to [`LARGEST`] elements: this number everywhere.
fn filled(g: &Graph, v: ValueId, n: i64) -> Option<Tensor> {
    let ty = g.tensor_type(v).filter(|ty| matches!(g.node(v.node).kind, Kind::Input(_)) && !ty.dtype.is_float())?;
    let (dims, size) = (ty.known_dims()?, ty.dtype.size()?);
    let n = if ty.dtype == DType::Bool { i64::from(n != 0) } else { n };
    let count = count(&dims, LARGEST)?;
    Some(Tensor::from_bytes(ty.dtype, &dims, n.to_le_bytes().get(..size)?.repeat(count)))
}

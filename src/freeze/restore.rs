//! Writes a trained state back into a forward graph, by name. Each tensor must have the right shape, and none may belong elsewhere.

use crate::error::Failure;
use crate::io::arrays::{Array, read_arrays};
use ancre_passes::analysis::roles::initializer_roles;
use ancre_passes::analysis::stored::{Stored, product};
use ancre_passes::contract::{ChainRecord, Record, RouterRecord, Ties};
use ancre_passes::ir::{DType, Graph, Rule, Tensor, TensorError, ValueId};
use ancre_passes::transform::{fake_quantize, separate, tie};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Suffixes of the optimiser's tensors, after the name of the parameter they belong to.
const MOMENTS: [&str; 4] = [".exp_avg", ".exp_avg_sq", ".momentum_buffer", ".accumulator"];

/// What a state gave.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// Tensors written back.
    pub(crate) tensors: usize,
    /// Entries that belong to training only: moments, accumulators, counters.
    pub(crate) unused: Vec<String>,
    /// Parameters of the model that the state does not hold: they did not train and stay as they were.
    pub(crate) kept: Vec<String>,
}

/// Puts the tensors of a state file into the initializers they belong to. Fails when the file cannot be read, or a tensor is
/// missing, too many, of a wrong shape or type, or not finite.
pub(super) fn restore(g: &mut Graph, path: &Path) -> Result<Restored, Failure> {
    let state = read_arrays(path)?;
    let fail = |what: String| Failure::input(what).at(path);
    let names: Vec<&str> = state.iter().map(key).collect();
    // The training graph may have separated parameters that the exporter had merged into one tensor. The optimiser's tensors are
    // none of them, so names that remain are no error.
    let _ = separate::separate_in_forward(g, names.iter().copied());
    let mut held: HashSet<&str> = names.iter().copied().collect();
    // Where the file does not say what is tied, equality of values does, so this comes before the values change.
    let ties = Ties::read(g).ok().flatten().map_or_else(|| tie::find_ties(g), |ties| ties.0);
    // What integers stand for is told before scales change.
    let moved = |values: &[ValueId]| values.iter().any(|v| held.contains(g.name(*v)));
    let mut stored = fake_quantize::trained_weights(g);
    stored.iter_mut().for_each(|w| w.tied = w.tied.filter(|tied| moved(tied)));
    stored.retain(|w| moved(&[w.value]) || moved(&w.scale) || w.tied.is_some());
    let mut floats: HashMap<ValueId, Vec<f32>> = HashMap::new();
    for w in stored.iter().filter(|w| !moved(&[w.value])) {
        let before = w.dequantise(g).and_then(|t| t.to_f32()).map_err(|e| fail(e.to_string()))?;
        floats.insert(w.value, before);
    }
    let mut done = Restored::default();
    let mut strange = Vec::new();
    for (array, name) in state.iter().zip(&names) {
        match g.find(name).filter(|v| g.initializer(*v).is_some()) {
            Some(v) if let Some(w) = stored.iter().find(|w| w.value == v && array.dtype == DType::F32) => {
                let given = checked(array, &w.dims, DType::F32);
                let given = given.and_then(|t| t.to_f32().map_err(|e| format!("cannot be read: {e}")));
                let given = given.map_err(|e| fail(format!("tensor `{}` {e}", array.name)).help(ELSEWHERE))?;
                floats.insert(v, given);
                done.tensors += 1;
            }
            Some(v) => {
                write(g, v, array).map_err(|e| fail(format!("tensor `{}` {e}", array.name)).help(ELSEWHERE))?;
                done.tensors += 1;
            }
            None if is_of_training(g, name) => done.unused.push(array.name.clone()),
            None => strange.push(format!("`{}`", array.name)),
        }
    }
    quantise(g, &stored, &floats).map_err(|e| fail(e.to_string()))?;
    if done.tensors == 0 {
        return Err(fail("holds no tensor of the model".into())
            .help("its names must be those of the training graph's state inputs, and it must come from this model's training graph"));
    }
    if !strange.is_empty() {
        let more = if strange.len() > 3 { format!(" and {} more", strange.len() - 3) } else { String::new() };
        let listed = strange.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
        return Err(fail(format!("holds {listed}{more}, of which the model has nothing")).help(ELSEWHERE));
    }
    missing(g, &names, &held).map_err(|e| fail(e).help(ELSEWHERE))?;
    // A parameter that the file holds under two names is in the state under one of them.
    for t in ties.iter().filter(|t| names.contains(&t.name.as_str()) && !names.contains(&t.transposed.as_str())) {
        if tie::follow(g, t) {
            held.insert(&t.transposed);
        }
    }
    done.kept = initializer_roles(g)
        .into_iter()
        .filter(|(v, role)| role.trains() && !held.contains(g.name(*v)) && !g.name(*v).starts_with("ancre"))
        .map(|(v, _)| g.name(v).to_string())
        .collect();
    Ok(done)
}

const ELSEWHERE: &str =
    "give the whole state that this model's own training graph handed out, and the forward graph that was written with it";

/// The name of the state tensor that an entry holds.
fn key(array: &Array) -> &str {
    array.name.strip_suffix(".next").unwrap_or(&array.name)
}

/// Is `name` a tensor that only training needs?
fn is_of_training(g: &Graph, name: &str) -> bool {
    let of_known =
        |suffix: &str| name.strip_suffix(suffix).is_some_and(|n| g.find(n).is_some_and(|v| g.initializer(v).is_some()));
    ["ancre.step", "ancre.loss_scale", "ancre.good_steps", "ancre.skipped_steps"].contains(&name)
        || MOMENTS.iter().any(|suffix| of_known(suffix))
}

/// Checks that the state holds the router's tensors, and every parameter whose moments it holds. A chain that the loss does not
/// depend on does not train, so one of several chains may be absent.
fn missing(g: &Graph, names: &[&str], held: &HashSet<&str>) -> Result<(), String> {
    if let Ok(Some(record)) = RouterRecord::read(g)
        && record.parametrization != Rule::Constant
    {
        let own = |c: &ChainRecord| [Some(c.logits.clone()), c.gate.clone()].into_iter().flatten().collect::<Vec<_>>();
        let absent = |c: &ChainRecord| own(c).into_iter().find(|n| !held.contains(n.as_str()));
        let none_of = |c: &ChainRecord| own(c).iter().all(|n| !held.contains(n.as_str()));
        let part = record.chains.iter().filter(|c| !none_of(c)).find_map(absent);
        let all = record.chains.iter().all(none_of).then(|| record.chains.iter().find_map(absent)).flatten();
        if let Some(name) = part.or(all) {
            return Err(format!("lacks the router's `{name}`"));
        }
    }
    let owner = |name: &&str| {
        MOMENTS.iter().find_map(|suffix| name.strip_suffix(suffix)).filter(|n| !held.contains(n)).map(String::from)
    };
    match names.iter().find_map(owner) {
        Some(name) => Err(format!("lacks `{name}`, of which it holds the optimiser's tensors")),
        None => Ok(()),
    }
}

/// Writes weights that are stored as integers, of which the state holds the floats, or another scale.
fn quantise(g: &mut Graph, stored: &[Stored], floats: &HashMap<ValueId, Vec<f32>>) -> Result<(), TensorError> {
    for w in stored {
        let Some(given) = floats.get(&w.value) else { continue };
        // Kernels of integers take it for granted that a bias has the scale of the products it is added to.
        if let Some(tied) = w.tied
            && let Some(own) = g.initializer(w.scale[0]).map(|t| t.dims().to_vec())
        {
            let product = product(g, &tied)?;
            g.set_initializer(w.scale[0], Tensor::f32s(&own, &product), false);
        }
        let integers = w.quantise(g, given)?;
        g.set_initializer(w.value, integers, false);
    }
    Ok(())
}

fn write(g: &mut Graph, v: ValueId, array: &Array) -> Result<(), String> {
    let Some(old) = g.initializer(v) else { return Ok(()) };
    let new = checked(array, old.dims(), old.dtype())?;
    g.set_initializer(v, new, false);
    Ok(())
}

/// An array as a tensor of a shape and type.
fn checked(array: &Array, expected: &[i64], dtype: DType) -> Result<Tensor, String> {
    let dims: Vec<i64> = array.shape.iter().map(|d| *d as i64).collect();
    if expected != dims {
        return Err(format!("has shape {dims:?}, the model's tensor has {expected:?}"));
    }
    if dtype.is_float() != array.dtype.is_float() {
        return Err(format!("has element type {}, the model's tensor has {dtype}", array.dtype));
    }
    let given = Tensor::from_bytes(array.dtype, &dims, array.read_all());
    let finite =
        |t: &Tensor| t.to_f64().map(|v| v.iter().all(|x| x.is_finite())).map_err(|e| format!("cannot be read: {e}"));
    if array.dtype.is_float() && !finite(&given)? {
        return Err("holds values that are no numbers (NaN or infinite): the run diverged; use an earlier checkpoint".into());
    }
    if array.dtype == dtype {
        Ok(given)
    } else if dtype.is_float() {
        // A master copy in float32 of a tensor of 16 bits.
        Ok(Tensor::floats(dtype, &dims, &given.to_f64().map_err(|e| format!("cannot be read: {e}"))?))
    } else {
        Err(format!("has element type {}, the model's tensor has {dtype}", array.dtype))
    }
}

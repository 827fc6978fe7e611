//! The weights of attention, which depend on the input: their means over the user's data.

use super::Weights;
use super::weights::{columns, of_deltas};
use crate::engine::{self, EngineError, ExternalData, Session, Tensors};
use crate::error::Failure;
use crate::io::feed::fitted;
use crate::io::tensor::NpTensor;
use crate::verify::read_inputs_among;
use ancre_passes::contract::{ChainRecord, RouterRecord};
use ancre_passes::ir::{Dim, Graph, ValueId};
use ancre_passes::onnx;
use ancre_passes::transform::eliminate;
use std::path::Path;

/// So many samples are run at once where the model takes any number.
const TOGETHER: usize = 64;

/// So many samples at most are run.
const MOST: usize = 256;

const HOW: &str = "--input FILE.npz (its arrays are named like the model's inputs), or --input NAME=FILE";

/// The weights of every chain, as means over all positions of the data, and the number of samples.
///
/// # Errors
/// When the data are missing or do not fit, or no engine runs the model.
pub(super) fn weights(
    g: &Graph,
    path: &Path,
    router: &RouterRecord,
    inputs: &[String],
) -> Result<(Vec<Weights>, usize), Failure> {
    let fail = |e: String| Failure::input(e).at(path);
    if inputs.is_empty() {
        return Err(fail("the weights of attention depend on the input: they are no numbers of the file".into())
            .help(format!("give data: {HOW}; shown are the means over them")));
    }
    let given = read_inputs_among(inputs, g).map_err(|e| e.at(path))?;
    if let Some(missing) = g.required_inputs().map(|v| g.name(v)).find(|name| !given.contains_key(*name)) {
        return Err(fail(format!("its input `{missing}` is not given")).help(HOW));
    }
    let seen = |c: &ChainRecord, row: usize| g.find(&format!("ancre/{}/attention_{}", c.id, row + 1));
    let mut watched = g.clone();
    watched.clear_outputs();
    router
        .chains
        .iter()
        .flat_map(|c| (0..c.blocks).filter_map(move |row| seen(c, row)))
        .for_each(|v| watched.add_output(v, None));
    if watched.outputs().is_empty() {
        return Err(fail("holds no values `ancre/CHAIN/attention_ROW`: its attention was lowered by another tool".into()));
    }
    eliminate::eliminate_dead(&mut watched, |_, _| false);
    let mut session = load(&watched, path).map_err(|e| fail(e.to_string()))?;
    let mut means = Means::default();
    let (batches, samples) = batches(g, &given).map_err(|e| fail(e).help(HOW))?;
    for feeds in batches {
        let found = session.run(&feeds).map_err(|e| fail(e.to_string()))?;
        found.into_iter().for_each(|(name, t)| means.add(name, t.shape().last().copied().unwrap_or(0), &t.to_f64()));
    }
    let row = |c: &ChainRecord, row: usize| match (c.reads(row), seen(c, row)) {
        // A row of one state has nothing to weigh.
        (1, None) => Ok(vec![1.0]),
        (reads, v) => {
            let weighed: Vec<usize> = router.sparsity().weighed(row, c.sources.len()).collect();
            let mean = v.and_then(|v| means.of(g.name(v))).filter(|mean| mean.len() == weighed.len());
            let mean = mean.filter(|mean| mean.iter().all(|w| w.is_finite())).ok_or_else(|| {
                fail(format!("block {} of chain {} gets no weights that are numbers from these data", row + 1, c.id))
            })?;
            let mut all = vec![0.0; reads];
            weighed.into_iter().zip(mean).for_each(|(column, w)| all[column] = w);
            Ok(all)
        }
    };
    let of_chain = |c: &ChainRecord| {
        let rows = (0..c.blocks).map(|r| row(c, r)).collect::<Result<_, Failure>>()?;
        Ok(Weights { id: c.id, columns: columns(router, c), rows, of_deltas: of_deltas(router) })
    };
    Ok((router.chains.iter().map(of_chain).collect::<Result<_, Failure>>()?, samples))
}

/// Opens the graph in the embedded engine, or in ONNX Runtime where that cannot take it.
fn load(g: &Graph, path: &Path) -> Result<Box<dyn Session>, EngineError> {
    let input = |e: String| EngineError::Input { name: path.display().to_string(), why: e };
    let model = onnx::emit(g).map_err(|e| input(e.to_string()))?.to_bytes().map_err(|e| input(e.to_string()))?;
    let data = || ExternalData::of(g, path);
    engine::tract().load(&model, data()).or_else(|first| match engine::ort() {
        Ok(ort) => ort.load(&model, data()),
        Err(_) => Err(first),
    })
}

/// The data in batches that the model takes, and the number of samples in them. The first input's first axis counts samples, and so does that of
/// other inputs that the model gives the same extent there.
fn batches(g: &Graph, given: &Tensors) -> Result<(Vec<Tensors>, usize), String> {
    let first_axis = |v: ValueId| g.tensor_type(v).and_then(|t| t.shape.first().cloned());
    let counted: Option<(ValueId, Dim)> = g.required_inputs().next().and_then(|v| Some((v, first_axis(v)?)));
    let Some((first, axis)) = counted else { return Ok((vec![given.clone()], 1)) };
    let has_samples = |name: &str| g.find(name).and_then(first_axis).as_ref() == Some(&axis);
    let count = |t: &NpTensor| t.shape().first().copied().unwrap_or(1);
    let samples = given.get(g.name(first)).map_or(0, count);
    if let Some((name, t)) = given.iter().find(|(name, t)| has_samples(name) && count(t) != samples) {
        return Err(format!("`{}` has {samples} samples and `{name}` {}", g.name(first), count(t)));
    }
    let fixed = axis.known().map(|n| n as usize);
    let size = fixed.unwrap_or(TOGETHER).max(1);
    if samples == 0 {
        return Err("the data hold no sample".into());
    }
    if let Some(n) = fixed.filter(|n| samples < *n) {
        return Err(format!("the data have {samples} samples, and the model takes {n} at once"));
    }
    let most = samples.min(MOST.max(size));
    // A last batch that is not full is left out where the model wants a full one.
    let starts = (0..most).step_by(size).filter(|at| fixed.is_none() || at + size <= samples);
    let part = |name: &str, t: &NpTensor, at: usize| {
        let t = match has_samples(name) {
            true => t.slice(0, at, size.min(most - at)).unwrap_or_else(|| t.clone()),
            false => t.clone(),
        };
        if let Some(input) = g.find(name) { fitted(g, input, t) } else { t }
    };
    let made: Vec<Tensors> =
        starts.map(|at| given.iter().map(|(name, t)| (name.clone(), part(name, t, at))).collect()).collect();
    let run = if fixed.is_some() { made.len() * size } else { most };
    Ok((made, run))
}

/// Means of tensors over all axes but the last.
#[derive(Default)]
struct Means(indexmap::IndexMap<String, (Vec<f64>, usize)>);

impl Means {
    fn add(&mut self, name: String, width: usize, values: &[f64]) {
        let (sums, count) = self.0.entry(name).or_insert_with(|| (vec![0.0; width], 0));
        for position in values.chunks_exact(width.max(1)) {
            sums.iter_mut().zip(position).for_each(|(sum, v)| *sum += v);
            *count += 1;
        }
    }

    fn of(&self, name: &str) -> Option<Vec<f32>> {
        let (sums, count) = self.0.get(name)?;
        Some(sums.iter().map(|sum| (sum / *count as f64) as f32).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::ir::{DType, TensorType};

    /// What a model with an input [first, 2] and one of positions [seq, 2] is fed of so many samples and positions: extents of each batch.
    fn fed(first: Dim, samples: usize, mask: usize) -> Result<(Vec<[usize; 3]>, usize), String> {
        let mut g = Graph::default();
        let axes = [("x", first.clone()), ("positions", Dim::symbol("seq")), ("mask", first)];
        for (name, axis) in axes {
            g.add_input(name, TensorType::new(DType::F32, vec![axis, Dim::from(2)]).into(), None);
        }
        let rows = |n: usize| NpTensor::f32s(&[n, 2], &vec![1.0; 2 * n]).unwrap();
        let given = [("x", samples), ("positions", 100), ("mask", mask)].map(|(name, n)| (name.to_string(), rows(n)));
        let (made, run) = batches(&g, &given.into_iter().collect())?;
        Ok((made.iter().map(|feeds| ["x", "positions", "mask"].map(|name| feeds[name].shape()[0])).collect(), run))
    }

    #[test]
    fn samples_are_cut_and_what_they_share_is_not() {
        let any = || Dim::symbol("batch");
        assert_eq!(fed(any(), 10, 10), Ok((vec![[10, 100, 10]], 10)));
        assert_eq!(fed(any(), 70, 70), Ok((vec![[64, 100, 64], [6, 100, 6]], 70)));
        assert_eq!(fed(any(), 300, 300).map(|(made, run)| (made.len(), run)), Ok((4, 256)));
        assert_eq!(fed(Dim::from(4), 10, 10), Ok((vec![[4, 100, 4], [4, 100, 4]], 8)));
        assert_eq!(fed(any(), 80, 70), Err("`x` has 80 samples and `mask` 70".into()));
        assert_eq!(fed(Dim::from(4), 3, 3), Err("the data have 3 samples, and the model takes 4 at once".into()));
        assert_eq!(fed(any(), 0, 0), Err("the data hold no sample".into()));
    }
}

//! The weights of attention, which depend on the input: their means over the user's data.

use super::Weights;
use super::weights::columns;
use crate::engine::{self, EngineError, ExternalData, Session, Tensors};
use crate::error::Failure;
use crate::verify::read_inputs;
use ancre_passes::contract::{ChainRecord, RouterRecord};
use ancre_passes::ir::{Graph, ValueId};
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
    let given = read_inputs(inputs, g).map_err(|e| e.at(path))?;
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
    let (batches, samples) = batches(g, &given);
    for feeds in batches {
        let found = session.run(&feeds).map_err(|e| fail(e.to_string()))?;
        found.into_iter().for_each(|(name, t)| means.add(name, t.shape().last().copied().unwrap_or(0), &t.to_f64()));
    }
    let row = |c: &ChainRecord, row: usize| {
        let reads = c.reads(row);
        let of = seen(c, row).and_then(|v| means.of(g.name(v))).filter(|mean| mean.len() == reads);
        // A row of one state has nothing to weigh.
        of.unwrap_or_else(|| (0..reads).map(|i| (i + 1 == reads) as u8 as f32).collect())
    };
    let of_chain = |c: &ChainRecord| Weights {
        id: c.id,
        columns: columns(router, c),
        rows: (0..c.blocks).map(|r| row(c, r)).collect(),
    };
    Ok((router.chains.iter().map(of_chain).collect(), samples))
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

/// The data in batches that the model takes, and the number of samples in them.
fn batches(g: &Graph, given: &Tensors) -> (Vec<Tensors>, usize) {
    let leading = |t: &crate::io::tensor::NpTensor| t.shape().first().copied();
    let samples = given.values().filter_map(leading).max().unwrap_or(1);
    let extent = |v: ValueId| g.tensor_type(v).and_then(|t| t.shape.first()?.known()).map(|n| n as usize);
    let fixed = g.required_inputs().filter(|v| given.get(g.name(*v)).and_then(leading) == Some(samples)).find_map(extent);
    let size = fixed.unwrap_or(TOGETHER).clamp(1, samples.max(1));
    let most = samples.min(MOST.max(size));
    // The last batch is left out where it is not full and the model wants a full one.
    let starts = (0..most).step_by(size).filter(|at| at + size <= samples || fixed.is_none());
    let part = |t: &crate::io::tensor::NpTensor, at: usize| match leading(t) {
        Some(n) if n == samples && n > size => t.slice(0, at, size.min(samples - at)).unwrap_or_else(|| t.clone()),
        _ => t.clone(),
    };
    let made: Vec<Tensors> = starts.map(|at| given.iter().map(|(name, t)| (name.clone(), part(t, at))).collect()).collect();
    let run = (made.len() * size).min(samples);
    (made, run)
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
        Some(sums.iter().map(|sum| (sum / (*count).max(1) as f64) as f32).collect())
    }
}

//! Arrays named like the graph's inputs.

use super::augment::{Augment, told};
use super::check::check_target;
use super::wanted::{Slot, Target, Wanted};
use super::{DataOptions, Dataset};
use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::arrays::{Array, numpy_name};
use crate::io::feed::{Conversion, conversion, convert};
use crate::io::tensor::NpTensor;
use ancre_passes::ir::DType;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A data set of arrays, one an input.
pub(super) struct ArraySet {
    path: PathBuf,
    feeds: Vec<Feed>,
    samples: usize,
    notices: Vec<String>,
}

/// How one input is fed.
struct Feed {
    slot: Slot,
    array: Array,
    how: Conversion,
    augment: Option<Augment>,
    /// Shape of one sample as it is fed.
    shape: Vec<usize>,
}

impl ArraySet {
    /// Checks arrays against the inputs.
    pub(super) fn open(path: &Path, arrays: Vec<Array>, wanted: &Wanted, o: &DataOptions) -> Result<ArraySet, Failure> {
        let fail = |(what, help): (String, String)| Failure::input(what).at(path).help(help);
        let mut feeds = Vec::new();
        let mut notices = Vec::new();
        for slot in wanted.slots() {
            let array = arrays.iter().find(|a| names(a, slot)).ok_or_else(|| fail(missing(slot, &arrays, wanted)))?;
            let target = wanted.target_of(slot);
            // Probabilities of pixels are no image.
            let layout = slot.image().filter(|_| !target.is_some_and(Target::is_probability));
            let numbers = target.is_some() || wanted.masks.contains(&slot.name);
            let how = conversion(array.dtype, slot.dtype, layout.is_some(), numbers);
            let mut how = how.ok_or_else(|| fail(wrong_type(slot, array)))?;
            let takes_bytes = wanted.normalises.as_ref().filter(|n| n.bytes && o.mean.is_none() && o.std.is_none());
            if let (Conversion::Pixels, Some(model)) = (how, takes_bytes) {
                how = Conversion::Exact;
                notices
                    .push(format!("array `{}` goes in as 0 … 255: the model scales it itself ({})", array.name, model.node));
            }
            let shape = sample_shape(slot, array).ok_or_else(|| fail(wrong_shape(slot, array)))?;
            notices.extend(notice(array, slot, how));
            let augment = match layout {
                Some(layout) => Augment::new(layout, &slot.name, o)?,
                None => None,
            };
            feeds.push(Feed { slot: slot.clone(), array: array.clone(), how, augment, shape });
        }
        let spare = arrays.iter().filter(|a| !wanted.slots().any(|s| names(a, s)));
        notices.extend(spare.map(|a| format!("array {} is not used: the graph has no such input", a.text())));
        let rows = |f: &Feed| f.array.shape[0];
        let first = feeds.iter().find(|f| f.slot.batched).ok_or_else(|| {
            Failure::input("no input of the training graph has a batch axis")
                .at(path)
                .help("export the model with a batch axis")
        })?;
        if let Some(other) = feeds.iter().find(|f| f.slot.batched && rows(f) != rows(first)) {
            let what = format!(
                "array `{}` has {} samples, array `{}` has {}",
                first.array.name,
                rows(first),
                other.array.name,
                rows(other)
            );
            return Err(fail((what, "give as many targets as inputs, in the same order".into())));
        }
        let samples = rows(first);
        if samples == 0 {
            let what = format!("array `{}` has no sample", first.array.name);
            return Err(fail((what, "give at least one batch of samples".into())));
        }
        for f in feeds.iter().filter(|f| f.slot.batched) {
            if let Some(target) = wanted.target_of(&f.slot) {
                check_target(&f.array, target).map_err(fail)?;
            }
        }
        Ok(ArraySet { path: path.to_path_buf(), feeds, samples, notices })
    }
}

/// Does the array feed the input? A file's name cannot hold the slash of an input's name; an underscore stands for it.
fn names(array: &Array, slot: &Slot) -> bool {
    let file = |c: char| if matches!(c, '/' | '\\' | ':') { '_' } else { c };
    array.name == slot.name || array.name == slot.name.chars().map(file).collect::<String>()
}

fn missing(slot: &Slot, arrays: &[Array], wanted: &Wanted) -> (String, String) {
    let listed: Vec<String> = arrays.iter().map(Array::text).collect();
    let held = if listed.is_empty() { "no arrays".to_string() } else { listed.join(", ") };
    let target = wanted.target_of(slot);
    let role = if target.is_some() { "target" } else { "input" };
    let spare: Vec<&Array> = arrays.iter().filter(|a| !wanted.slots().any(|s| names(a, s))).collect();
    let help = match (target.map(|t| t.loss.as_str()), &spare[..]) {
        (Some("next-token"), _) => {
            format!("save the token ids once more as `{}`: the graph shifts them itself", slot.name)
        }
        (_, [one]) => {
            format!("rename `{}` to `{}`, or rewrite the model with --labels {0} if it is the target", one.name, slot.name)
        }
        _ => format!("name an array `{}`; the graph wants {}", slot.name, wanted.listed()),
    };
    (format!("has no array for the {role} {}; it holds {held}", slot.text()), help)
}

fn wrong_type(slot: &Slot, array: &Array) -> (String, String) {
    let numpy = numpy_name(slot.dtype);
    let why = match (array.dtype, slot.dtype) {
        (DType::U8, to) if to.is_float() => " (bytes are scaled to 0 … 1 for image inputs only)",
        _ => "",
    };
    let what = format!("array {} does not fit {}: the element types differ{why}", array.text(), slot.text());
    (what, format!("save it as {numpy} (numpy: x.astype('{numpy}'))"))
}

/// The shape of a sample as it is fed; `None` when the array does not fit. A trailing axis of one may be missing or surplus.
fn sample_shape(slot: &Slot, array: &Array) -> Option<Vec<usize>> {
    let own = if slot.batched { array.shape.get(1..)? } else { &array.shape[..] };
    let fits = own.len() == slot.shape.len() && own.iter().zip(&slot.shape).all(|(d, s)| s.is_none_or(|s| s == *d));
    if fits {
        return Some(own.to_vec());
    }
    let ones = own.iter().all(|d| *d == 1) && slot.shape.iter().all(|d| *d == Some(1));
    (slot.batched && ones).then(|| vec![1; slot.shape.len()])
}

fn wrong_shape(slot: &Slot, array: &Array) -> (String, String) {
    let what = format!("array {} does not fit {}: the shapes differ", array.text(), slot.text());
    let own = array.shape.get(1..).unwrap_or_default();
    let fits = |shape: &[usize]| {
        shape.len() == slot.shape.len() && shape.iter().zip(&slot.shape).all(|(d, s)| s.is_none_or(|s| s == *d))
    };
    let same_count = slot.shape.iter().try_fold(1, |n, d| d.map(|d| n * d)) == Some(own.iter().product());
    let help = match own {
        [h, w, c] if fits(&[*c, *h, *w]) => "move the channels to the front (numpy: x.transpose(0, 3, 1, 2))".to_string(),
        [c, h, w] if fits(&[*h, *w, *c]) => "move the channels to the end (numpy: x.transpose(0, 2, 3, 1))".to_string(),
        _ if array.shape.is_empty() => "samples lie along the first axis".to_string(),
        _ if same_count => {
            let dims: Vec<String> = slot.shape.iter().map(|d| d.map_or(-1, |d| d as i64).to_string()).collect();
            format!("give it the input's shape (numpy: x.reshape({}))", [vec!["-1".into()], dims].concat().join(", "))
        }
        _ => "samples lie along the first axis, the rest must be as the input has it".to_string(),
    };
    (what, help)
}

fn notice(array: &Array, slot: &Slot, how: Conversion) -> Option<String> {
    let (name, from, to) = (&array.name, numpy_name(array.dtype), numpy_name(slot.dtype));
    match how {
        Conversion::Round => Some(format!("array `{name}` is {from}; it is rounded to {to}")),
        Conversion::Pixels => Some(format!("array `{name}` is uint8; it is scaled from 0 … 255 to 0 … 1")),
        _ => None,
    }
}

impl Feed {
    /// How an image is made of the array, if it is one and its numbers are not what the input gets.
    fn told(&self) -> Option<Value> {
        let layout = self.slot.image()?;
        let augment = self.augment.as_ref();
        let [a, b, c] = self.shape[..] else { return None };
        let size = if layout.last { [a, b] } else { [b, c] };
        let scale = if self.how == Conversion::Pixels { 255 } else { 1 };
        let is_made = self.array.dtype == DType::U8 || augment.is_some_and(Augment::normalises);
        is_made.then(|| told(&self.slot, layout, size, scale, augment))
    }

    fn rows(&self, rows: &[usize], epoch: u64) -> Option<NpTensor> {
        let augment = self.augment.as_ref();
        let to = if augment.is_some() { DType::F32 } else { self.slot.dtype };
        let (t, batch) = match self.slot.batched {
            true => (self.array.rows(rows.iter().copied())?, Some(rows.len())),
            false => (self.array.tensor()?, None),
        };
        let shape: Vec<usize> = batch.into_iter().chain(self.shape.iter().copied()).collect();
        let t = convert(t, to, &shape, self.how)?;
        let Some(augment) = augment else { return Some(t) };
        let mut pixels = t.to_f32();
        let size = pixels.len() / rows.len().max(1);
        for (row, sample) in rows.iter().zip(pixels.chunks_exact_mut(size.max(1))) {
            augment.apply(sample, &self.shape, *row, epoch);
        }
        from_f32s(self.slot.dtype, &shape, &pixels)
    }
}

/// A float tensor of any type from float32 numbers.
pub(super) fn from_f32s(dtype: DType, shape: &[usize], values: &[f32]) -> Option<NpTensor> {
    if dtype == DType::F32 {
        return NpTensor::f32s(shape, values);
    }
    NpTensor::from_f64s(dtype, shape, &values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
}

impl Dataset for ArraySet {
    fn len(&self) -> usize {
        self.samples
    }

    fn describe(&self) -> String {
        let listed: Vec<String> = self.feeds.iter().map(|f| f.array.text()).collect();
        format!("{} samples of {}: {}", self.samples, self.path.display(), listed.join(", "))
    }

    fn batch(&self, rows: &[usize], epoch: u64) -> Result<Tensors, Failure> {
        let feed = |f: &Feed| {
            let tensor = f.rows(rows, epoch);
            let fault = || Failure::input(format!("array `{}` cannot be read", f.array.name)).at(&self.path);
            Ok((f.slot.name.clone(), tensor.ok_or_else(fault)?))
        };
        self.feeds.iter().map(feed).collect()
    }

    fn values(&self, name: &str, rows: &[usize]) -> Result<Option<NpTensor>, Failure> {
        Ok(self.feeds.iter().find(|f| f.slot.name == name).and_then(|f| f.rows(rows, 0)))
    }

    fn notices(&self) -> &[String] {
        &self.notices
    }

    fn preprocessing(&self) -> Option<Value> {
        let mut all: Vec<Value> = self.feeds.iter().filter_map(Feed::told).collect();
        if all.len() > 1 { Some(all.into()) } else { all.pop() }
    }
}

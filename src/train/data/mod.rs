//! Data sets of `train`: arrays, image folders, token files; checked against the training graph before the first step, read in
//! batches by a background thread.

mod arrays;
mod augment;
mod batches;
mod check;
mod images;
mod resize;
#[cfg(test)]
mod tests;
mod tokens;
mod wanted;

pub use batches::{Batch, Batches, batches_per_epoch, order};
pub use wanted::{Slot, Target, Wanted};

pub use crate::cli::DataOptions;

use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::arrays::{holds_arrays, read_arrays, read_dir};
use crate::io::tensor::NpTensor;
use crate::text::{self, Tokenizer, Tokens};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A data set: samples by number.
pub trait Dataset: Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;

    /// Does the set have no sample? An opened set always has one.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The set in one line.
    fn describe(&self) -> String;

    /// The inputs of a batch made of these samples. What is random about a sample depends on seed, epoch and sample alone.
    /// Fails when a sample cannot be read; the error names its file.
    fn batch(&self, rows: &[usize], epoch: u64) -> Result<Tensors, Failure>;

    /// What an input is fed of these samples, where that takes no more than reading it.
    ///
    /// # Errors
    /// As [`Dataset::batch`].
    fn values(&self, name: &str, rows: &[usize]) -> Result<Option<NpTensor>, Failure> {
        Ok(self.batch(rows, 0)?.swap_remove(name))
    }

    /// Notices about what was converted or left aside.
    fn notices(&self) -> &[String] {
        &[]
    }

    /// Do samples follow each other in one text, so that neighbours know of each other?
    fn is_sequence(&self) -> bool {
        false
    }

    /// Bytes of text for each token, where that is known.
    fn bytes_per_token(&self) -> Option<f64> {
        None
    }

    /// Names of the classes, where the set's files give them.
    fn classes(&self) -> Option<&[String]> {
        None
    }

    /// How an image was made of its file or array, as JSON, where its numbers are not what the input gets; a list for several inputs.
    fn preprocessing(&self) -> Option<Value> {
        None
    }
}

/// Opens a data set and checks it against what the training graph wants. Fails when it cannot be read, has an unknown form,
/// or does not fit: names, shapes, types, label ranges, no samples.
pub fn open(path: &Path, wanted: &Wanted, o: &DataOptions) -> Result<Arc<dyn Dataset>, Failure> {
    check_options(wanted, o)?;
    let suffix = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).unwrap_or_default();
    let meta = std::fs::metadata(path).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(path).help(FORMS))?;
    let unknown = || Failure::input("is no data set of a known form").at(path).help(FORMS);
    let set: Arc<dyn Dataset> = match (meta.is_dir(), suffix.as_str()) {
        (true, _) if holds_arrays(path)? => Arc::new(arrays::ArraySet::open(path, read_dir(path)?, wanted, o)?),
        (false, "npz" | "safetensors") => Arc::new(arrays::ArraySet::open(path, read_arrays(path)?, wanted, o)?),
        (true, _) if images::holds_folders(path)? => Arc::new(images::ImageSet::open(path, wanted, o)?),
        (false, "bin") => Arc::new(tokens::TokenSet::open(path, Tokens::read(path)?, wanted, o)?),
        (is_dir, _) if o.text.tokenizer.is_some() || (!is_dir && Tokens::are_in_text(path)) => {
            let what = "is text, and nothing says how it becomes tokens";
            let name = o.text.tokenizer.as_deref().ok_or_else(|| Failure::input(what).at(path).help(text::HOW))?;
            let tokens = text::encode(&[path.to_path_buf()], &Tokenizer::open(name)?, &o.text)?;
            Arc::new(tokens::TokenSet::open(path, tokens, wanted, o)?)
        }
        _ => return Err(unknown()),
    };
    if u32::try_from(set.len()).is_err() {
        let what = format!("has {} samples, more than the {} that can be shuffled", set.len(), u32::MAX);
        return Err(Failure::input(what).at(path).help("split it into several sets"));
    }
    Ok(set)
}

/// The training and the validation set of a directory that holds nothing but such folders: `train`, and `val`, `valid`,
/// `validation` or, where there is none of these, `test`.
pub fn parts(dir: &Path) -> Result<Option<(PathBuf, Option<PathBuf>)>, Failure> {
    const HELD_BACK: [&str; 4] = ["val", "valid", "validation", "test"];
    if !dir.is_dir() || holds_arrays(dir)? {
        return Ok(None);
    }
    let folders: Vec<PathBuf> = images::entries(dir)?.into_iter().filter(|p| p.is_dir()).collect();
    let named = |name: &str| folders.iter().find(|p| p.ends_with(name)).cloned();
    let known = folders.iter().all(|p| HELD_BACK.iter().chain(&["train"]).any(|n| p.ends_with(n)));
    Ok(named("train").filter(|_| known).map(|train| (train, HELD_BACK.into_iter().find_map(named))))
}

/// A set that threads share.
pub type Shared = Arc<dyn Dataset>;

/// Holds back a part of a set: of a text its end, otherwise samples drawn without a seed of the user's, so that every run on these
/// data holds back the same. `plain` is the same set as it is read for validation.
pub fn split(set: Shared, plain: Shared, share: f64) -> Result<(Shared, Shared), Failure> {
    let n = set.len();
    let held_back = ((n as f64 * share).round() as usize).max(1);
    if held_back >= n {
        return Err(Failure::input(format!("--val-split {share} of {n} samples leaves nothing to train on")));
    }
    let mut rows: Vec<usize> = match set.is_sequence() {
        true => (0..n).collect(),
        false => order(0, 0, n).into_iter().map(|r| r as usize).collect(),
    };
    let mut back = rows.split_off(n - held_back);
    rows.sort_unstable();
    back.sort_unstable();
    Ok((
        Arc::new(Part { of: set, rows, what: "left to train on" }),
        Arc::new(Part { of: plain, rows: back, what: "held back" }),
    ))
}

/// Some samples of a set.
struct Part {
    of: Arc<dyn Dataset>,
    rows: Vec<usize>,
    what: &'static str,
}

impl Dataset for Part {
    fn len(&self) -> usize {
        self.rows.len()
    }

    fn describe(&self) -> String {
        format!("{} {} of {}", self.rows.len(), self.what, self.of.describe())
    }

    fn batch(&self, rows: &[usize], epoch: u64) -> Result<Tensors, Failure> {
        self.of.batch(&rows.iter().map(|r| self.rows[*r]).collect::<Vec<_>>(), epoch)
    }

    fn values(&self, name: &str, rows: &[usize]) -> Result<Option<NpTensor>, Failure> {
        self.of.values(name, &rows.iter().map(|r| self.rows[*r]).collect::<Vec<_>>())
    }

    fn notices(&self) -> &[String] {
        self.of.notices()
    }

    fn is_sequence(&self) -> bool {
        self.of.is_sequence()
    }

    fn bytes_per_token(&self) -> Option<f64> {
        self.of.bytes_per_token()
    }

    fn classes(&self) -> Option<&[String]> {
        self.of.classes()
    }

    fn preprocessing(&self) -> Option<Value> {
        self.of.preprocessing()
    }
}

const FORMS: &str = "give an .npz or .safetensors file or a directory of .npy files with arrays named like the graph's inputs, a \
                     directory with one folder of images a class, a file of tokens (.bin), or text (.txt, .jsonl) with --tokenizer";

fn check_options(wanted: &Wanted, o: &DataOptions) -> Result<(), Failure> {
    if o.std.iter().flatten().any(|s| !(s.is_finite() && *s > 0.0)) || o.mean.iter().flatten().any(|m| !m.is_finite()) {
        return Err(Failure::input("--mean takes finite numbers and --std positive ones"));
    }
    if o.window == Some(0) || o.stride == Some(0) {
        return Err(Failure::input("--window and --stride take numbers of at least 1"));
    }
    let images = wanted.inputs.iter().any(|s| s.image().is_some());
    let asked = o.flip || o.crop || o.mean.is_some() || o.std.is_some();
    if asked && !images {
        let listed = wanted.listed();
        return Err(Failure::input(format!(
            "--flip, --crop, --mean and --std are for images, and no input of the model is one: {listed}"
        ))
        .help("an image input is a float tensor [N, C, H, W] or [N, H, W, C] of 1, 3 or 4 channels"));
    }
    if let Some(target) = wanted.targets.iter().find(|t| (o.flip || o.crop) && t.slot.shape.len() > 1) {
        return Err(Failure::input(format!(
            "--flip and --crop move pixels, and the target {} has places too, which would have to move with them",
            target.slot.text()
        ))
        .help("leave them away"));
    }
    Ok(())
}

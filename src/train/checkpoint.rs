//! Checkpoints: `.safetensors` files that hold the whole state, named like the state inputs, and the run's position in their
//! metadata. A file appears whole or not at all, and is on the disk when its name appears.

use super::course::Course;
use super::guard::Guard;
use super::ranks::NUMBERS;
use crate::cli::CourseOptions;
use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::arrays::{read_safetensors, stored, tensors};
use crate::io::outputs::{UNFINISHED, parent, temporary};
use crate::topology::Network;
use ancre_passes::contract::CHECKPOINT_KEY;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

pub(super) const LAST: &str = "last.safetensors";
pub(super) const BEST: &str = "best.safetensors";

/// Where a run stood.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Position {
    pub(super) step: u64,
    /// Epoch of the next batch, from 0.
    pub(super) epoch: u64,
    /// The next batch within the epoch.
    pub(super) batch: usize,
    /// Sums of the epoch so far.
    pub(super) sums: Sums,
    /// The best validation so far.
    pub(super) best: Option<Best>,
    /// What decides the run's course; a resumed run must have the same.
    pub(super) course: Course,
    /// The options that the run was given.
    #[serde(default)]
    pub(super) options: CourseOptions,
    #[serde(default)]
    pub(super) guard: Guard,
    /// Validations since the best one.
    #[serde(default)]
    pub(super) unimproved: u32,
}

/// What a checkpoint says besides its state.
#[derive(Serialize)]
struct Header<'a> {
    #[serde(flatten)]
    position: &'a Position,
    /// The routed network, so that a checkpoint can be drawn by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a Network>,
}

/// Sums over batches, from which means are made.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub(super) struct Sums {
    /// Loss times weight.
    pub(super) loss: f64,
    /// Weights: what the loss is a mean over.
    pub(super) weight: f64,
    pub(super) right: u64,
    pub(super) predictions: u64,
    pub(super) samples: u64,
    /// The same of each of several losses; its samples are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) terms: Vec<Sums>,
}

/// Losses whose sums a message between ranks has room for.
pub(super) const MOST_LOSSES: usize = 8;

/// A step's message has two more numbers, at the end.
const _: () = assert!(5 + 4 * MOST_LOSSES + 2 <= NUMBERS);

impl Sums {
    /// As numbers that can be summed over ranks, those of several losses last.
    pub(super) fn numbers(&self) -> [f64; NUMBERS] {
        let four = |s: &Sums| [s.loss, s.weight, s.right as f64, s.predictions as f64];
        let all = four(self).into_iter().chain([self.samples as f64]).chain(self.terms.iter().flat_map(four));
        let mut numbers = [0.0; NUMBERS];
        numbers.iter_mut().zip(all).for_each(|(n, v)| *n = v);
        numbers
    }

    /// Sums of so many losses from their numbers.
    pub(super) fn of_numbers(numbers: &[f64], losses: usize) -> Sums {
        let of =
            |n: &[f64]| Sums { loss: n[0], weight: n[1], right: n[2] as u64, predictions: n[3] as u64, ..Sums::default() };
        let terms = if losses > 1 { numbers[5..].chunks_exact(4).take(losses).map(of).collect() } else { Vec::new() };
        Sums { samples: numbers[4] as u64, terms, ..of(numbers) }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, more: Sums) {
        self.loss += more.loss;
        self.weight += more.weight;
        self.right += more.right;
        self.predictions += more.predictions;
        self.samples += more.samples;
        self.terms.resize_with(self.terms.len().max(more.terms.len()), Sums::default);
        self.terms.iter_mut().zip(more.terms).for_each(|(own, more)| *own += more);
    }
}

/// A validation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Best {
    pub(super) step: u64,
    /// Of this epoch, from 0.
    pub(super) epoch: u64,
    pub(super) loss: f64,
    /// Its accuracy, where there are labels.
    pub(super) accuracy: Option<f64>,
}

/// Writes a state. Once this returns, nothing of it can be lost.
fn write(path: &Path, state: &Tensors, position: String) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::input(format!("cannot be written: {e}")).at(path);
    let dir = parent(path);
    let temp = temporary(dir).map_err(|e| fail(&e))?;
    // One key: the crate writes several in another order each time.
    let metadata = HashMap::from([(CHECKPOINT_KEY.to_string(), position)]);
    let state = stored(state).map_err(|e| fail(&e))?;
    safetensors::serialize_to_file(state, Some(metadata), temp.path()).map_err(|e| fail(&e))?;
    temp.as_file().sync_all().map_err(|e| fail(&e))?;
    temp.persist(path).map_err(|e| fail(&e.error))?;
    sync_dir(dir).map_err(|e| fail(&e))
}

/// A checkpoint of no steps, as the bytes of its file.
pub(super) fn at_start(state: &Tensors, network: Option<&Network>) -> Result<Vec<u8>, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::input(e.to_string());
    let header = Header { position: &Position::default(), network };
    let text = serde_json::to_string(&header).map_err(|e| fail(&e))?;
    let metadata = HashMap::from([(CHECKPOINT_KEY.to_string(), text)]);
    safetensors::serialize(stored(state).map_err(|e| fail(&e))?, Some(metadata)).map_err(|e| fail(&e))
}

/// Makes a rename in a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Reads the tensors of a .safetensors file and, if it is a checkpoint, where the run stood.
pub fn read(path: &Path) -> Result<(Tensors, Option<Position>), Failure> {
    let (arrays, metadata) = read_safetensors(path)?;
    Ok((tensors(&arrays, path)?, stood(path, &metadata)?))
}

/// Where the newest checkpoint of a directory says that the run stood, if there is one. Its tensors are not read.
pub(super) fn peek(dir: &Path) -> Result<Option<Position>, Failure> {
    let Some((_, path)) = numbered(dir).pop() else { return Ok(None) };
    stood(&path, &read_safetensors(&path)?.1)
}

fn stood(path: &Path, metadata: &HashMap<String, String>) -> Result<Option<Position>, Failure> {
    let unreadable = |e| Failure::input(format!("its `{CHECKPOINT_KEY}` metadata cannot be read: {e}")).at(path);
    metadata.get(CHECKPOINT_KEY).map(|text| serde_json::from_str(text).map_err(unreadable)).transpose()
}

/// The numbered checkpoints of a directory, oldest first.
fn numbered(dir: &Path) -> Vec<(u64, PathBuf)> {
    let number = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut all: Vec<(u64, PathBuf)> = entries.filter_map(|p| Some((number(&p)?, p))).collect();
    all.sort();
    all
}

/// A run's directory of checkpoints.
pub(super) struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    /// The routed network, which each checkpoint describes so that it can be drawn by itself.
    pub(super) network: Option<Network>,
    /// Held as long as the run lasts. A rank that reads them only has none.
    lock: Option<File>,
}

impl Checkpoints {
    /// Opens the directory, or makes it. Leftovers of a killed run are removed.
    pub(super) fn open(dir: &Path, keep: usize) -> Result<Checkpoints, Failure> {
        let fail = |e: io::Error| Failure::input(format!("cannot be used for checkpoints: {e}")).at(dir);
        fs::create_dir_all(dir).map_err(fail)?;
        let lock = File::options().create(true).append(true).open(dir.join(".lock")).map_err(fail)?;
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Failure::input("another run is writing its checkpoints there").at(dir).help("choose another --out"));
        }
        for entry in fs::read_dir(dir).map_err(fail)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Checkpoints { dir: dir.to_path_buf(), keep: keep.max(1), network: None, lock: Some(lock) })
    }

    /// The directory as a rank sees it that writes nothing there.
    pub(super) fn of_another(dir: &Path) -> Checkpoints {
        Checkpoints { dir: dir.to_path_buf(), keep: 1, network: None, lock: None }
    }

    /// The numbered checkpoints, oldest first.
    pub(super) fn all(&self) -> Vec<(u64, PathBuf)> {
        numbered(&self.dir)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The best checkpoint, if there is one.
    pub(super) fn best(&self) -> Option<PathBuf> {
        Some(self.path(BEST)).filter(|p| p.is_file())
    }

    /// The newest checkpoint, with its file.
    pub(super) fn newest(&self) -> Result<Option<(Tensors, Position, PathBuf)>, Failure> {
        let Some((_, path)) = self.all().pop() else { return Ok(None) };
        let (state, position) = read(&path)?;
        let position =
            position.ok_or_else(|| Failure::input("is no checkpoint: it does not say where the run stood").at(&path))?;
        // The run may have been killed after it wrote this checkpoint and before it named it.
        if self.lock.is_some() {
            self.name(&path, &position)?;
        }
        Ok(Some((state, position, path)))
    }

    /// Writes a checkpoint, names it the last one (and the best one, if it is) and removes what is older than the last few.
    pub(super) fn save(&self, state: &Tensors, position: &Position) -> Result<PathBuf, Failure> {
        let path = self.path(&format!("step-{:08}.safetensors", position.step));
        let header = Header { position, network: self.network.as_ref() };
        let text = serde_json::to_string(&header).map_err(|e| Failure::input(e.to_string()))?;
        write(&path, state, text)?;
        self.name(&path, position)?;
        let all = self.all();
        for (_, old) in &all[..all.len().saturating_sub(self.keep)] {
            let _ = fs::remove_file(old);
        }
        Ok(path)
    }

    fn name(&self, path: &Path, position: &Position) -> Result<(), Failure> {
        self.link(path, LAST)?;
        if position.best.is_some_and(|b| b.step == position.step) {
            self.link(path, BEST)?;
        }
        Ok(())
    }

    /// Gives a checkpoint a second name, which another checkpoint may have had.
    fn link(&self, path: &Path, name: &str) -> Result<(), Failure> {
        let target = self.path(name);
        let fail = |e: io::Error| Failure::input(format!("cannot be written: {e}")).at(&target);
        let temp = self.path(&format!("{UNFINISHED}{name}"));
        let _ = fs::remove_file(&temp);
        // Where the file system has no links, a copy.
        if fs::hard_link(path, &temp).is_err() {
            fs::copy(path, &temp).and_then(|_| File::open(&temp)?.sync_all()).map_err(fail)?;
        }
        fs::rename(&temp, &target).map_err(fail)?;
        // A rename over another link to the same file leaves both links.
        let _ = fs::remove_file(&temp);
        sync_dir(&self.dir).map_err(fail)
    }

    /// Removes the checkpoints of an earlier run.
    pub(super) fn clear(&self) -> Result<(), Failure> {
        let named = [LAST, BEST].map(|n| self.path(n));
        for path in self.all().into_iter().map(|(_, p)| p).chain(named.into_iter().filter(|p| p.exists())) {
            fs::remove_file(&path).map_err(|e| Failure::input(format!("cannot be removed: {e}")).at(&path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tensor::NpTensor;
    use ancre_passes::ir::DType;

    fn position(step: u64, best: Option<u64>) -> Position {
        let best = best.map(|step| Best { step, epoch: 0, loss: 0.1 + 0.2, accuracy: Some(0.5) });
        Position {
            step,
            epoch: 3,
            batch: 5,
            sums: Sums { loss: 1.0 / 3.0, ..Sums::default() },
            best,
            course: Course::default(),
            options: CourseOptions::default(),
            guard: Guard::default(),
            unimproved: 0,
        }
    }

    fn state(value: f32) -> Tensors {
        Tensors::from([
            ("w".to_string(), NpTensor::f32s(&[2, 1], &[value, f32::MIN_POSITIVE / 2.0]).unwrap()),
            ("odd".to_string(), NpTensor::new(DType::U8, &[3], vec![1, 2, 3]).unwrap()),
            ("ancre.step".to_string(), NpTensor::i64s(&[], &[7]).unwrap()),
        ])
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        all.sort();
        all
    }

    #[test]
    fn the_last_few_and_the_best_are_kept_and_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let c = Checkpoints::open(&dir.path().join("run"), 2).unwrap();
        assert!(c.newest().unwrap().is_none());
        for step in 1..=4 {
            c.save(&state(step as f32), &position(step, (step >= 2).then_some(2))).unwrap();
        }
        let wanted = [".lock", BEST, LAST, "step-00000003.safetensors", "step-00000004.safetensors"];
        assert_eq!(names(&dir.path().join("run")), wanted);
        let mut expected = state(4.0);
        expected.sort_keys();
        let (tensors, at, path) = c.newest().unwrap().unwrap();
        assert_eq!(tensors, expected);
        assert_eq!(serde_json::to_string(&at).unwrap(), serde_json::to_string(&position(4, Some(2))).unwrap());
        assert_eq!(fs::read(path).unwrap(), fs::read(c.path(LAST)).unwrap());
        assert_eq!(read(&c.best().unwrap()).unwrap().0["w"].to_f32()[0], 2.0);
        c.clear().unwrap();
        assert_eq!(names(&dir.path().join("run")), [".lock"]);
    }

    #[test]
    fn leftovers_go_and_two_runs_do_not_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".ancre-x"), "half").unwrap();
        let first = Checkpoints::open(dir.path(), 1).unwrap();
        assert_eq!(names(dir.path()), [".lock"]);
        let e = Checkpoints::open(dir.path(), 1).err().unwrap();
        assert!(e.what.contains("another run"), "{e}");
        drop(first);
        Checkpoints::open(dir.path(), 1).unwrap();
    }
}

//! Checkpoints: `.safetensors` files with the whole state, named like the state inputs, and in their metadata where the run
//! stood. A file appears whole or not at all, and is on the disk when its name appears.

use super::course::Course;
use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{DType, SharedBytes};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Key of the metadata.
const KEY: &str = "ancre.train";
/// Name of the newest checkpoint.
pub const LAST: &str = "last.safetensors";
/// Name of the best one.
pub const BEST: &str = "best.safetensors";
/// Files that are not finished.
const UNFINISHED: &str = ".ancre-";

/// Where a run stood.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Position {
    /// Steps done.
    pub step: u64,
    /// Epoch of the next batch, from 0.
    pub epoch: u64,
    /// The next batch within the epoch.
    pub batch: usize,
    /// What the epoch's figures are made of so far.
    pub sums: Sums,
    /// The best validation so far.
    pub best: Option<Best>,
    /// What decides the run's course, to be compared when it is resumed.
    pub course: Course,
}

/// Sums over batches, from which means are made.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Sums {
    /// Loss times weight.
    pub loss: f64,
    /// Weights: what the loss is a mean over.
    pub weight: f64,
    /// Right predictions.
    pub right: u64,
    /// Predictions.
    pub predictions: u64,
    /// Samples.
    pub samples: u64,
}

/// A validation.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Best {
    /// After this step.
    pub step: u64,
    /// Of this epoch, from 0.
    pub epoch: u64,
    /// Its loss.
    pub loss: f64,
    /// Its accuracy, where there are labels.
    pub accuracy: Option<f64>,
}

/// Writes a state where nothing of it can be lost once this returns.
///
/// # Errors
/// When the file cannot be written, or the state holds a type that cannot be stored.
pub fn write(path: &Path, state: &Tensors, metadata: &Map<String, Value>) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::input(format!("cannot be written: {e}")).at(path);
    let header = header(state, metadata).map_err(|e| fail(&e))?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temp = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir).map_err(|e| fail(&e))?;
    let body = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, temp.as_file());
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        state.values().try_for_each(|t| file.write_all(t.bytes()))?;
        file.flush()?;
        drop(file);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            temp.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        }
        temp.as_file().sync_all()
    };
    body().map_err(|e| fail(&e))?;
    temp.persist(path).map_err(|e| fail(&e.error))?;
    sync_dir(dir).map_err(|e| fail(&e))
}

/// Makes a rename in a directory last.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

fn header(state: &Tensors, metadata: &Map<String, Value>) -> Result<Vec<u8>, String> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), Value::Object(metadata.clone()));
    let mut at = 0;
    for (name, t) in state {
        let dtype = stored_as(t.dtype())
            .ok_or_else(|| format!("state `{name}` has element type {}, which .safetensors has not", t.dtype()))?;
        let end = at + t.bytes().len();
        entries.insert(name.clone(), json!({"dtype": dtype, "shape": t.shape(), "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    // Readers map the file: the data starts at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

const TYPES: [(DType, Dtype, &str); 13] = [
    (DType::F32, Dtype::F32, "F32"),
    (DType::F64, Dtype::F64, "F64"),
    (DType::F16, Dtype::F16, "F16"),
    (DType::BF16, Dtype::BF16, "BF16"),
    (DType::I64, Dtype::I64, "I64"),
    (DType::I32, Dtype::I32, "I32"),
    (DType::I16, Dtype::I16, "I16"),
    (DType::I8, Dtype::I8, "I8"),
    (DType::U64, Dtype::U64, "U64"),
    (DType::U32, Dtype::U32, "U32"),
    (DType::U16, Dtype::U16, "U16"),
    (DType::U8, Dtype::U8, "U8"),
    (DType::Bool, Dtype::BOOL, "BOOL"),
];

fn stored_as(dtype: DType) -> Option<&'static str> {
    TYPES.iter().find(|t| t.0 == dtype).map(|t| t.2)
}

/// Reads the tensors of a .safetensors file and, if it is a checkpoint, where the run stood.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> Result<(Tensors, Option<Position>), Failure> {
    let fail = |e: String| Failure::input(e).at(path);
    let mapped = File::open(path).and_then(|mut file| SharedBytes::of_file(&mut file));
    let bytes = mapped.map_err(|e| fail(format!("cannot be read: {e}")))?;
    let broken = |e: safetensors::SafeTensorError| fail(format!("is not a readable .safetensors: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let position = match header.metadata().as_ref().and_then(|m| m.get(KEY)) {
        Some(text) => {
            Some(serde_json::from_str(text).map_err(|e| fail(format!("its `{KEY}` metadata cannot be read: {e}")))?)
        }
        None => None,
    };
    let file = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let mut state = Tensors::new();
    for (name, view) in file.tensors() {
        let dtype = TYPES.iter().find(|t| t.1 == view.dtype()).map(|t| t.0);
        let tensor = dtype.and_then(|d| NpTensor::new(d, view.shape(), view.data().to_vec()));
        let tensor =
            tensor.ok_or_else(|| fail(format!("`{name}` has element type {:?}, which no state has", view.dtype())))?;
        state.insert(name, tensor);
    }
    state.sort_keys();
    Ok((state, position))
}

/// A run's directory of checkpoints.
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
    /// Held as long as the run lasts.
    _lock: File,
}

impl Checkpoints {
    /// Opens the directory, making it if need be; leftovers of a killed run are removed.
    ///
    /// # Errors
    /// When it cannot be made, or another run writes to it.
    pub fn open(dir: &Path, keep: usize) -> Result<Checkpoints, Failure> {
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
        Ok(Checkpoints { dir: dir.to_path_buf(), keep: keep.max(1), _lock: lock })
    }

    /// The numbered checkpoints, oldest first.
    pub fn all(&self) -> Vec<(u64, PathBuf)> {
        let number = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
        };
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|e| e.path());
        let mut all: Vec<(u64, PathBuf)> = entries.filter_map(|p| Some((number(&p)?, p))).collect();
        all.sort();
        all
    }

    /// A file of the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The best checkpoint, if there is one.
    pub fn best(&self) -> Option<PathBuf> {
        Some(self.path(BEST)).filter(|p| p.is_file())
    }

    /// The newest checkpoint, with its file.
    ///
    /// # Errors
    /// When it cannot be read, or is no checkpoint of a run.
    pub fn newest(&self) -> Result<Option<(Tensors, Position, PathBuf)>, Failure> {
        let Some((_, path)) = self.all().pop() else { return Ok(None) };
        let (state, position) = read(&path)?;
        let position =
            position.ok_or_else(|| Failure::input("is no checkpoint: it does not say where the run stood").at(&path))?;
        // The run may have been killed between writing this one and naming it.
        self.name(&path, &position)?;
        Ok(Some((state, position, path)))
    }

    /// Writes a checkpoint, names it the last one (and the best one, if it is) and removes what is older than the last few.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, state: &Tensors, position: &Position) -> Result<PathBuf, Failure> {
        let path = self.path(&format!("step-{:08}.safetensors", position.step));
        let text = serde_json::to_string(position).map_err(|e| Failure::input(e.to_string()))?;
        write(&path, state, &Map::from_iter([(KEY.to_string(), Value::String(text))]))?;
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

    /// Gives a checkpoint a second name, replacing whatever had it.
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
        // Renaming a link over another link to the same file leaves both.
        let _ = fs::remove_file(&temp);
        sync_dir(&self.dir).map_err(fail)
    }

    /// Removes the checkpoints of an earlier run.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn clear(&self) -> Result<(), Failure> {
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

    fn position(step: u64, best: Option<u64>) -> Position {
        let best = best.map(|step| Best { step, epoch: 0, loss: 0.1 + 0.2, accuracy: Some(0.5) });
        Position {
            step,
            epoch: 3,
            batch: 5,
            sums: Sums { loss: 1.0 / 3.0, ..Sums::default() },
            best,
            course: Course::default(),
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
        assert_eq!((tensors, at), (expected, position(4, Some(2))));
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

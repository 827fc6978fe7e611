//! Writing outputs whole or not at all: everything is written under temporary names first and put in place together.

use crate::error::Failure;
use crate::io::arrays::map;
use crate::io::files;
use ancre_passes::ir::{Graph, SharedBytes};
use ancre_passes::onnx::{self, Emission, MOST_BYTES, Placement};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempPath};

/// Files to be put in place together: each is written under a temporary name first, so that an error leaves nothing behind.
#[derive(Default)]
pub struct Outputs {
    /// In the order in which they are put in place: data before the model that refers to it.
    pending: Vec<Pending>,
    made: Vec<PathBuf>,
    /// Where a source's data file goes in a directory.
    placed: HashMap<(PathBuf, PathBuf), String>,
    /// Files that must not be written.
    sources: Vec<PathBuf>,
    /// A larger model's weights go to a data file; `None`: at the limit of the format.
    most_bytes: Option<u64>,
}

struct Pending {
    temp: TempPath,
    path: PathBuf,
}

impl Outputs {
    /// Outputs that never replace these files.
    pub fn sparing(sources: &[&Path]) -> Outputs {
        let mut outputs = Outputs::default();
        outputs.sources.extend(sources.iter().map(|p| p.to_path_buf()));
        outputs
    }

    /// Writes a model beside its destination, and what external data it needs. Returns the model file's size.
    pub fn add_model(&mut self, emission: &Emission, path: &Path) -> Result<u64, Failure> {
        let fail = |e: onnx::EmitError| cannot(path, e);
        let mut placement = Placement::default();
        let files = onnx::external_files(emission.graph());
        if let Some(home) = &emission.graph().home {
            for location in files.keys() {
                let place = self.place_data(&home.dir, location, path)?;
                if place != *location {
                    placement.moved.insert(location.clone(), place);
                }
            }
        }
        let moved = if placement.moved.is_empty() { None } else { Some(emission.placed(&placement).map_err(fail)?) };
        let mut emission = moved.as_ref().unwrap_or(emission);
        let large;
        if emission.byte_len() > self.most_bytes.unwrap_or(MOST_BYTES) {
            let name = self.data_name(path, &files)?;
            placement.data = Some(name.clone());
            large = emission.placed(&placement).map_err(fail)?;
            emission = &large;
            let data = path.with_file_name(name);
            self.add(&data, |file| large.write_data(file).map_err(|e| e.to_string()))?;
        }
        self.add(path, |file| emission.write_to(file).map_err(|e| e.to_string()))?;
        Ok(emission.byte_len())
    }

    /// Writes bytes beside their destination.
    pub fn add_bytes(&mut self, bytes: &[u8], path: &Path) -> Result<(), Failure> {
        self.add(path, |file| file.write_all(bytes).map_err(|e| e.to_string()))
    }

    /// Reads a model back that was written for this path, from its temporary file. Its data is read where it lies now: what
    /// is still under a temporary name is referred to by that.
    pub fn read_back(&self, path: &Path) -> Result<(Graph, SharedBytes), Failure> {
        let pending = |path: &Path| self.pending.iter().find(|p| p.path == path).map(|p| &*p.temp);
        let written = pending(path).ok_or_else(|| Failure::input("was not written").at(path))?;
        let (graph, bytes) = files::read_at(written, path)?;
        let mut placement = Placement::default();
        for location in onnx::external_files(&graph).into_keys() {
            if let Some(name) = pending(&parent(path).join(&location))
                .or_else(|| pending(&path.with_file_name(&location)))
                .and_then(Path::file_name)
            {
                let now = Path::new(&location).with_file_name(name);
                placement.moved.insert(location, now.to_string_lossy().into_owned());
            }
        }
        if placement.moved.is_empty() {
            return Ok((graph, bytes));
        }
        let placed = onnx::emit(&graph).and_then(|e| e.placed(&placement)?.to_bytes());
        let bytes = SharedBytes::new(placed.map_err(|e| Failure::input(e.to_string()).at(path))?);
        Ok((files::parse_model(&bytes, path)?, bytes))
    }

    /// The bytes of a model that was written for this path, as [`Outputs::read_back`] gives them, and where its data lies with how
    /// many bytes, if it has any.
    pub fn written(&self, path: &Path) -> Result<(SharedBytes, Option<(PathBuf, u64)>), Failure> {
        let (graph, bytes) = self.read_back(path)?;
        let (dir, locations) = (parent(path), onnx::external_files(&graph));
        let size = |location: &String| dir.join(location).metadata().map_or(0, |m| m.len());
        Ok((bytes, (!locations.is_empty()).then(|| (dir.to_path_buf(), locations.keys().map(size).sum()))))
    }

    fn add(&mut self, path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), String>) -> Result<(), Failure> {
        if path.is_dir() {
            return Err(cannot(path, "it is a directory"));
        }
        // The rename would replace a device or a pipe by a file.
        if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(cannot(path, "it is no regular file"));
        }
        if self.sources.iter().any(|s| is_same_file(s, path)) {
            return Err(cannot(path, "it is the input, or holds its data"));
        }
        let dir = parent(path);
        self.make_dir(dir).map_err(|e| cannot(path, e))?;
        let temp = temporary(dir).map_err(|e| cannot(path, e))?;
        {
            let mut file = io::BufWriter::with_capacity(1 << 20, temp.as_file());
            write(&mut file).map_err(|e| cannot(path, e))?;
            file.flush().map_err(|e| cannot(path, e))?;
        }
        self.pending.push(Pending { temp: temp.into_temp_path(), path: path.to_path_buf() });
        Ok(())
    }

    fn make_dir(&mut self, dir: &Path) -> io::Result<()> {
        if let Some(file) = dir.ancestors().find(|d| d.is_file()) {
            return Err(io::Error::other(format!("{} is a file, no directory", file.display())));
        }
        let missing: Vec<&Path> = dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
        fs::create_dir_all(dir)?;
        self.made.extend(missing.into_iter().map(Path::to_path_buf));
        Ok(())
    }

    /// Makes a source's data file available beside an output, and returns its location there. A file that lies there already is
    /// never replaced: if its content is another, the data gets another name.
    fn place_data(&mut self, root: &Path, location: &str, output: &Path) -> Result<String, Failure> {
        let root = if root.as_os_str().is_empty() { Path::new(".") } else { root };
        // A model whose data is missing is written without the data.
        let Ok(source) = root.join(location).canonicalize() else { return Ok(location.to_string()) };
        if !source.is_file() {
            return Err(cannot(output, format!("its data `{location}` is no file but {}", source.display())));
        }
        self.sources.push(source.clone());
        let dir = parent(output);
        let key = (source.clone(), dir.to_path_buf());
        if let Some(place) = self.placed.get(&key) {
            return Ok(place.clone());
        }
        let mut place = location.to_string();
        for n in 1.. {
            let target = dir.join(&place);
            // Of a link that leaves the directory nobody reads a model's data.
            let own = matches!((target.canonicalize(), dir.canonicalize()), (Ok(real), Ok(dir)) if real.starts_with(&dir));
            if own && is_same_file(&source, &target) {
                break;
            }
            if target.symlink_metadata().is_err() && !self.pending.iter().any(|p| p.path == target) {
                self.copy(&source, &target)?;
                break;
            }
            if own && has_same_content(&source, &target) {
                break;
            }
            place = numbered(location, n);
        }
        self.placed.insert(key, place.clone());
        Ok(place)
    }

    /// Copies a file, under a temporary name for now. A hard link will not do: readers refuse data files with a second link
    /// (`onnx.load` since 1.20 takes that for an attack), so the link would break the source too. Where the file system can
    /// share blocks between files, the copy shares them.
    fn copy(&mut self, source: &Path, target: &Path) -> Result<(), Failure> {
        let dir = parent(target);
        self.make_dir(dir).map_err(|e| cannot(target, e))?;
        let temp = temporary(dir).map_err(|e| cannot(target, e))?;
        let copied = File::open(source).and_then(|mut from| io::copy(&mut from, &mut temp.as_file()));
        copied.map_err(|e| cannot(target, format!("copying {}: {e}", source.display())))?;
        self.pending.push(Pending { temp: temp.into_temp_path(), path: target.to_path_buf() });
        Ok(())
    }

    /// A name for the data file of a model over 2 GiB that no file of the model's own data has.
    fn data_name(&self, path: &Path, files: &indexmap::IndexMap<String, String>) -> Result<String, Failure> {
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| cannot(path, "its name is not Unicode"))?;
        let name = format!("{name}.data");
        let taken = |name: &String| {
            let target = path.with_file_name(name);
            files.contains_key(name)
                || self.pending.iter().any(|p| p.path == target)
                || self.sources.iter().any(|s| is_same_file(s, &target))
                || self.placed.values().any(|place| place == name)
        };
        let mut all = std::iter::once(name.clone()).chain((1..).map(|n| numbered(&name, n)));
        all.find(|n| !taken(n)).ok_or_else(|| cannot(path, "no name is free for its data"))
    }

    /// Every file to be put in place, with its size.
    pub fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.pending.iter().map(|p| (&*p.path, fs::metadata(&p.temp).map_or(0, |m| m.len())))
    }

    /// Puts all files in place.
    pub fn commit(mut self) -> Result<(), Failure> {
        for Pending { temp, path } in std::mem::take(&mut self.pending) {
            temp.persist(&path).map_err(|e| cannot(&path, e.error))?;
        }
        self.made.clear();
        Ok(())
    }
}

impl Drop for Outputs {
    fn drop(&mut self) {
        self.pending.clear();
        for dir in &self.made {
            // A directory that another program uses is not empty and stays.
            let _ = fs::remove_dir(dir);
        }
    }
}

fn cannot(path: &Path, e: impl std::fmt::Display) -> Failure {
    Failure::input(format!("cannot be written: {e}")).at(path).help("choose another place with -o")
}

/// Beginning of the names of files that are not finished.
pub(crate) const UNFINISHED: &str = ".ancre-";

/// A temporary file that gets the permissions of any new file.
pub(crate) fn temporary(dir: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.prefix(UNFINISHED).tempfile_in(dir)
}

pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `weights.bin` as `weights.1.bin`.
fn numbered(location: &str, n: usize) -> String {
    let path = Path::new(location);
    let stem = path.file_stem().map(|s| s.to_string_lossy()).unwrap_or_default();
    let name = match path.extension() {
        Some(suffix) => format!("{stem}.{n}.{}", suffix.to_string_lossy()),
        None => format!("{stem}.{n}"),
    };
    path.with_file_name(name).to_string_lossy().into_owned()
}

/// Are both paths the same existing file, be it through links?
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if let (Ok(a), Ok(b)) = (fs::metadata(a), fs::metadata(b)) {
            return (a.dev(), a.ino()) == (b.dev(), b.ino());
        }
    }
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn has_same_content(a: &Path, b: &Path) -> bool {
    matches!((map(a), map(b)), (Ok(a), Ok(b)) if a[..] == b[..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::ir::{Attrs, DType, Graph, Op, SharedBytes, Tensor, TensorType};

    /// `y = x + w`, `w` of 1024 elements.
    fn sum() -> Graph {
        let mut g = Graph::default();
        let ty = TensorType::fixed(DType::F32, &[1024]);
        let x = g.add_input("x", ty.clone().into(), None);
        let w = g.add_initializer("w", Tensor::f32s(&[1024], &[1.5; 1024]), false);
        let add = g.add_op("add", Op::new("Add", Attrs::new()), &[Some(x), Some(w)]);
        let y = g.push_result(add, "y", ty.into());
        g.add_output(y, None);
        g
    }

    fn write(outputs: &mut Outputs, g: &Graph, path: &Path) -> u64 {
        outputs.add_model(&onnx::emit(g).unwrap(), path).unwrap()
    }

    fn read(path: &Path) -> Graph {
        onnx::read(&SharedBytes::new(fs::read(path).unwrap()), path.parent()).unwrap()
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        all.sort();
        all
    }

    /// The sum with `w` in `m.onnx.data`, as `m.onnx` in a directory of its own.
    fn external(dir: &Path) -> PathBuf {
        let path = dir.join("m.onnx");
        let mut outputs = Outputs::default();
        outputs.most_bytes = Some(1000);
        write(&mut outputs, &sum(), &path);
        outputs.commit().unwrap();
        path
    }

    fn weight(g: &Graph) -> (Vec<f32>, String) {
        let t = g.initializer(g.find("w").unwrap()).unwrap();
        (t.to_f32().unwrap(), t.external().map(|e| e.location).unwrap_or_default())
    }

    #[test]
    fn a_large_model_gets_a_data_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = external(dir.path());
        assert_eq!(files(dir.path()), ["m.onnx", "m.onnx.data"]);
        assert!(fs::metadata(&path).unwrap().len() < 1000);
        assert_eq!(weight(&read(&path)), (vec![1.5; 1024], "m.onnx.data".into()));
    }

    #[test]
    fn a_staged_model_is_read_with_its_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        let mut outputs = Outputs::default();
        outputs.most_bytes = Some(1000);
        write(&mut outputs, &sum(), &path);
        let (g, _) = outputs.read_back(&path).unwrap();
        let (values, location) = weight(&g);
        assert!(values == [1.5; 1024] && location.starts_with(".ancre-"), "{location}");
        // What is on the disk counts, not what was to be written.
        let data = dir.path().join(location);
        let mut bytes = fs::read(&data).unwrap();
        bytes[..4].copy_from_slice(&2f32.to_le_bytes());
        fs::write(&data, bytes).unwrap();
        assert_eq!(weight(&outputs.read_back(&path).unwrap().0).0[..2], [2.0, 1.5]);
        outputs.commit().unwrap();

        // A copy in another directory, and data that is there already.
        let g = read(&path);
        for out in ["away/m.onnx", "beside.onnx"] {
            let mut outputs = Outputs::default();
            write(&mut outputs, &g, &dir.path().join(out));
            let (back, _) = outputs.read_back(&dir.path().join(out)).unwrap();
            assert_eq!(weight(&back).0[..2], [2.0, 1.5], "{out}");
        }
    }

    #[test]
    fn data_goes_with_its_model_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let g = read(&external(dir.path()));
        let mut outputs = Outputs::default();
        write(&mut outputs, &g, &dir.path().join("beside.onnx"));
        write(&mut outputs, &g, &dir.path().join("away/a.onnx"));
        write(&mut outputs, &g, &dir.path().join("away/b.onnx"));
        outputs.commit().unwrap();
        assert_eq!(files(dir.path()), ["away", "beside.onnx", "m.onnx", "m.onnx.data"]);
        assert_eq!(files(&dir.path().join("away")), ["a.onnx", "b.onnx", "m.onnx.data"]);
        assert_eq!(weight(&read(&dir.path().join("away/b.onnx"))).0, [1.5; 1024]);

        fs::write(dir.path().join("away/m.onnx.data"), "another file").unwrap();
        let mut outputs = Outputs::default();
        write(&mut outputs, &g, &dir.path().join("away/a.onnx"));
        outputs.commit().unwrap();
        assert_eq!(fs::read(dir.path().join("away/m.onnx.data")).unwrap(), b"another file");
        assert_eq!(weight(&read(&dir.path().join("away/a.onnx"))), (vec![1.5; 1024], "m.onnx.1.data".into()));
    }

    #[test]
    fn nothing_is_left_of_outputs_that_are_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let mut outputs = Outputs::default();
        write(&mut outputs, &sum(), &dir.path().join("new/er/m.onnx"));
        drop(outputs);
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn inputs_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = external(dir.path());
        let g = read(&path);
        let mut outputs = Outputs::sparing(&[&path]);
        for name in ["m.onnx", "m.onnx.data"] {
            let e = outputs.add_model(&onnx::emit(&g).unwrap(), &dir.path().join(name)).unwrap_err();
            assert!(e.what.contains("it is the input"), "{e}");
        }
    }
}

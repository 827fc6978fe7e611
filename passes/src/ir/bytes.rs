//! Bytes of a file, shared by everything that was read from it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Below this size a file is read, not mapped: a mapping costs one page fault for each page, and keeps the file open.
const SMALLEST_MAPPING: u64 = 64 << 10;

/// A piece of a file: mapped into memory where that pays, or read. Clones share it.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// Takes bytes over.
    pub fn new(bytes: Vec<u8>) -> SharedBytes {
        let range = 0..bytes.len();
        SharedBytes { owner: Arc::new(bytes), range }
    }

    /// The whole of an open file. A file that is not regular, such as a pipe, is read to its end.
    ///
    /// # Errors
    /// When the file cannot be read or mapped.
    pub fn of_file(file: &mut File) -> io::Result<SharedBytes> {
        let meta = file.metadata()?;
        if meta.is_file() && meta.len() >= SMALLEST_MAPPING {
            return SharedBytes::of_range(file, 0, meta.len());
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(SharedBytes::new(bytes))
    }

    /// `length` bytes of a regular file from `offset` on; the caller has checked that it has them.
    ///
    /// # Errors
    /// When the file cannot be read or mapped.
    pub fn of_range(file: &mut File, offset: u64, length: u64) -> io::Result<SharedBytes> {
        let size = usize::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        if length < SMALLEST_MAPPING {
            let mut bytes = vec![0; size];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut bytes)?;
            return Ok(SharedBytes::new(bytes));
        }
        #[allow(unsafe_code, reason = "mapping a file has no safe form")]
        // SAFETY: the mapping is private and read-only. Another process may still shorten the file while it is mapped. Every
        // program that maps its input, such as an ONNX runtime, accepts this. This tool never writes to a file in place: its
        // outputs are new files, which it renames.
        let map = unsafe { memmap2::MmapOptions::new().offset(offset).len(size).map(&*file)? };
        Ok(SharedBytes { owner: Arc::new(map), range: 0..size })
    }

    /// A part of these bytes; cut to what there is.
    pub fn slice(&self, range: Range<usize>) -> SharedBytes {
        let end = self.range.start.saturating_add(range.end).min(self.range.end);
        let start = self.range.start.saturating_add(range.start).min(end);
        SharedBytes { owner: self.owner.clone(), range: start..end }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedBytes({:?})", self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn slices_stay_within_their_file() {
        let mut file = tempfile();
        let content: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        file.write_all(&content).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let whole = SharedBytes::of_file(&mut file).unwrap();
        assert_eq!(&*whole, &content[..]);
        assert_eq!(&*whole.slice(5..9), &content[5..9]);
        assert_eq!(&*whole.slice(10..100).slice(80..200), &content[90..100]);
        assert!(whole.slice(300_000..400_000).is_empty());
        assert_eq!(&*SharedBytes::of_range(&mut file, 70_001, 100_000).unwrap(), &content[70_001..170_001]);
        assert_eq!(&*SharedBytes::of_range(&mut file, 7, 3).unwrap(), &content[7..10]);
    }

    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!("ancre-bytes-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }
}

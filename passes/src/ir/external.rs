//! Constants whose elements lie in a file beside the model: where, and what paths are taken.

use onnx_protobuf::TensorProto;
use onnx_protobuf::tensor_proto::DataLocation;
use std::path::{Component, Path, PathBuf};

/// Where a model's external data lies.
#[derive(Clone, Debug)]
pub struct Home {
    /// Directory that relative paths start from.
    pub dir: PathBuf,
    /// Directory of the file that the model's file is a link to. The Hugging Face cache links a model and its data into one folder
    /// of blobs.
    pub blobs: Option<PathBuf>,
}

impl Home {
    /// That of a model file.
    pub fn of(model: &Path) -> Home {
        let real = model.canonicalize().ok();
        Home { blobs: real.and_then(|p| Some(p.parent()?.to_path_buf())), ..Home::from(model.parent().unwrap_or(model)) }
    }
}

impl From<&Path> for Home {
    fn from(dir: &Path) -> Home {
        Home { dir: dir.to_path_buf(), blobs: None }
    }
}

/// How a Git LFS pointer begins, the small text that stands for a large file which was not fetched.
pub const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// The place of an external tensor's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalPlace {
    /// Path as written in the model, relative to the model's directory.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes, if stated.
    pub length: Option<u64>,
}

/// Is a file a Git LFS pointer?
pub(super) fn begins_as_pointer(path: &Path) -> bool {
    let mut begin = [0; LFS_POINTER.len()];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut begin));
    read.is_ok() && begin == LFS_POINTER
}

/// Where a message's elements are, if they are in an external file.
pub(crate) fn external_place(p: &TensorProto) -> Option<ExternalPlace> {
    if p.data_location.enum_value() != Ok(DataLocation::EXTERNAL) {
        return None;
    }
    let get = |key: &str| p.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    Some(ExternalPlace {
        location: get("location").unwrap_or_default().to_string(),
        offset: get("offset").and_then(|v| v.parse().ok()).unwrap_or(0),
        // Writers that do not know it leave it out or say 0; type and shape tell it.
        length: get("length").and_then(|v| v.parse().ok()).filter(|length| *length > 0),
    })
}

/// What is wrong with the path of an external file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    #[error(
        "its external data path `{0}` must be relative and stay below the model's directory; move the data beside the model and save it with a plain file name"
    )]
    Outside(String),
    #[error(
        "its external data file `{0}` is a link that leads neither below the model's directory nor beside the file that the model is a link to; put the data itself beside the model"
    )]
    Link(String),
}

/// The checked path of an external file: relative, below the model's directory, not through a link that leaves it; except for
/// one that leads beside the file that the model itself is a link to.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn external_path(home: Option<&Home>, location: &str) -> Result<PathBuf, PathError> {
    let relative = Path::new(location);
    if location.is_empty() || relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(PathError::Outside(location.into()));
    }
    let dir = home.map(|h| h.dir.as_path()).filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let path = dir.join(relative);
    if let (Ok(real), Ok(base)) = (path.canonicalize(), dir.canonicalize())
        && !real.starts_with(&base)
        && real.parent() != home.and_then(|h| h.blobs.as_deref())
    {
        return Err(PathError::Link(location.into()));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::super::tensor::Tensor;
    use super::*;

    #[test]
    fn external_paths_stay_below_the_model() {
        use onnx_protobuf::StringStringEntryProto;
        for bad in ["/etc/passwd", "../w.bin", "a/../../w.bin", ""] {
            let mut p = TensorProto { name: "w".into(), dims: vec![1], data_type: 1, ..Default::default() };
            p.data_location = DataLocation::EXTERNAL.into();
            p.external_data =
                vec![StringStringEntryProto { key: "location".into(), value: bad.into(), ..Default::default() }];
            let t = Tensor::from_proto(p, None).unwrap();
            assert!(t.bytes().unwrap_err().to_string().contains("must be relative"), "{bad}");
        }
    }
}

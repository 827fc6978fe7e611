//! Constants of both graphs, each content once: equal bytes are equal constants, wherever they are stored.

use crate::ir::{DType, Parts, Tensor};
use crate::ops::eval::places::{Places, count};
use crate::ops::eval::{Array, Bounded};
use indexmap::IndexSet;
use onnx_protobuf::Message;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

/// Number of a constant in [`Constants`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConstId(u32);

/// Elements of a constant, in the file where possible.
type Bytes<'g> = Rc<Cow<'g, [u8]>>;

/// The content of a constant, without its element type and shape.
enum Content<'g> {
    /// Little-endian elements.
    Elements(Bytes<'g>),
    /// The message of a type whose elements are not read (strings, packed four-bit integers).
    Message(Vec<u8>),
    /// Where its missing elements would be.
    Missing(String),
}

struct Constant<'g> {
    dtype: DType,
    dims: Vec<i64>,
    content: Content<'g>,
    uniform: OnceCell<Option<f64>>,
}

/// The table of constants.
#[derive(Default)]
pub(super) struct Constants<'g> {
    all: Vec<Constant<'g>>,
    /// Candidates by hash; equality is decided by the bytes.
    by_hash: HashMap<(DType, Vec<i64>, u64), SmallVec<[ConstId; 1]>>,
    /// External data that was read already, so that no bytes are read twice.
    by_place: HashMap<(PathBuf, u64, DType, Vec<i64>), ConstId>,
    /// External files that could not be read, whose constants are told apart by place alone.
    pub(super) missing: IndexSet<String>,
}

impl<'g> Constants<'g> {
    /// The constant a tensor is.
    pub(super) fn of_tensor(&mut self, t: &'g Tensor) -> ConstId {
        if let Some(place) = t.external() {
            let Ok((path, range)) = t.external_range() else {
                self.missing.insert(place.location.clone());
                let text = format!("{}@{}+{:?}", place.location, place.offset, place.length);
                return self.intern(t.dtype(), t.dims().to_vec(), Content::Missing(text));
            };
            let path = path.canonicalize().unwrap_or(path);
            let key = (path, range.start, t.dtype(), t.dims().to_vec());
            if let Some(id) = self.by_place.get(&key) {
                return *id;
            }
            let id = self.of_bytes_or_message(t);
            self.by_place.insert(key, id);
            return id;
        }
        self.of_bytes_or_message(t)
    }

    fn of_bytes_or_message(&mut self, t: &'g Tensor) -> ConstId {
        let content = match (t.dtype().size(), t.bytes()) {
            (Some(size), Ok(bytes)) if bytes.len() == size * t.len() => Content::Elements(Rc::new(bytes)),
            // Packed elements of less than a byte.
            (_, Ok(bytes)) => Content::Message(bytes.into_owned()),
            // Without a message to compare, the constant is equal to no other.
            (_, Err(_)) => match message(t) {
                Some(m) => Content::Message(m),
                None => Content::Missing(format!("constant {}", self.all.len())),
            },
        };
        self.intern(t.dtype(), t.dims().to_vec(), content)
    }

    /// The constant with these elements.
    pub(super) fn of_elements(&mut self, dtype: DType, dims: Vec<i64>, bytes: Vec<u8>) -> ConstId {
        self.intern(dtype, dims, Content::Elements(Rc::new(Cow::Owned(bytes))))
    }

    /// The same elements under another shape of as many.
    pub(super) fn reshaped(&mut self, id: ConstId, dims: Vec<i64>) -> Option<ConstId> {
        count(&dims, usize::MAX).filter(|n| *n == self.len(id))?;
        let c = &self.all[id.0 as usize];
        let Content::Elements(bytes) = &c.content else { return None };
        let (dtype, bytes) = (c.dtype, bytes.clone());
        Some(self.intern(dtype, dims, Content::Elements(bytes)))
    }

    /// The elements in the places that `from` names, under other dimensions.
    pub(super) fn moved(&mut self, id: ConstId, (dims, from): Places) -> Option<ConstId> {
        let (dtype, bytes) = (self.dtype(id), self.bytes(id)?);
        let size = dtype.size()?;
        let mut out = Vec::with_capacity(from.len() * size);
        for at in from {
            out.extend_from_slice(bytes.get(at * size..(at + 1) * size)?);
        }
        Some(self.of_elements(dtype, dims, out))
    }

    fn intern(&mut self, dtype: DType, dims: Vec<i64>, content: Content<'g>) -> ConstId {
        let hash = match &content {
            Content::Elements(b) => hash(b),
            Content::Message(m) => hash(m) ^ 1,
            Content::Missing(p) => hash(p.as_bytes()) ^ 2,
        };
        let new = ConstId(self.all.len() as u32);
        let candidates = self.by_hash.entry((dtype, dims.clone(), hash)).or_default();
        for id in candidates.iter() {
            let same = match (&self.all[id.0 as usize].content, &content) {
                (Content::Elements(a), Content::Elements(b)) => Rc::ptr_eq(a, b) || a[..] == b[..],
                (Content::Message(a), Content::Message(b)) => a == b,
                (Content::Missing(a), Content::Missing(b)) => a == b,
                _ => false,
            };
            if same {
                return *id;
            }
        }
        candidates.push(new);
        self.all.push(Constant { dtype, dims, content, uniform: OnceCell::new() });
        new
    }

    pub(super) fn dtype(&self, id: ConstId) -> DType {
        self.all[id.0 as usize].dtype
    }

    pub(super) fn dims(&self, id: ConstId) -> &[i64] {
        &self.all[id.0 as usize].dims
    }

    pub(super) fn len(&self, id: ConstId) -> usize {
        self.dims(id).iter().fold(1i64, |n, d| n.saturating_mul(*d)) as usize
    }

    /// Little-endian elements, if they can be read.
    pub(super) fn bytes(&self, id: ConstId) -> Option<&[u8]> {
        match &self.all[id.0 as usize].content {
            Content::Elements(b) => Some(b),
            _ => None,
        }
    }

    /// The elements, if there are at most so many and all are numbers that a proof may use.
    pub(super) fn array(&self, id: ConstId, most: usize) -> Option<Array<Bounded>> {
        if self.len(id) > most {
            return None;
        }
        Array::read(&Tensor::from_bytes(self.dtype(id), self.dims(id), self.bytes(id)?.to_vec()))
    }

    /// The one finite number that all elements are, bit for bit.
    pub(super) fn uniform(&self, id: ConstId) -> Option<f64> {
        let c = &self.all[id.0 as usize];
        *c.uniform.get_or_init(|| {
            let (bytes, size) = (self.bytes(id)?, c.dtype.size()?);
            let first = bytes.get(..size)?;
            if !bytes.chunks_exact(size).all(|e| e == first) {
                return None;
            }
            let one = Tensor::from_bytes(c.dtype, &[1], first.to_vec());
            let v = if c.dtype.is_float() { *one.to_f64().ok()?.first()? } else { *one.to_i64().ok()?.first()? as f64 };
            (v.is_finite() && v.abs() < 9e15).then_some(v)
        })
    }

    /// `f32[3,3]`, and what can be said of two constants that differ.
    pub(super) fn difference(&self, a: ConstId, b: ConstId) -> String {
        let (x, y) = (&self.all[a.0 as usize], &self.all[b.0 as usize]);
        if (x.dtype, &x.dims) != (y.dtype, &y.dims) {
            return format!("constants {}{:?} and {}{:?}", x.dtype, x.dims, y.dtype, y.dims);
        }
        let (Some(p), Some(q), Some(size)) = (self.bytes(a), self.bytes(b), x.dtype.size()) else {
            return "constants whose elements cannot be read".into();
        };
        let elements = || p.chunks_exact(size).zip(q.chunks_exact(size)).enumerate();
        let count = elements().filter(|(_, (u, v))| u != v).count();
        let Some((at, (u, v))) = elements().find(|(_, (u, v))| u != v) else { return "equal constants".into() };
        let mut index = Vec::new();
        let mut rest = at as i64;
        for d in x.dims.iter().rev() {
            index.insert(0, rest % d.max(&1));
            rest /= d.max(&1);
        }
        let show = |e: &[u8]| {
            let t = Tensor::from_bytes(x.dtype, &[1], e.to_vec());
            let text = if x.dtype.is_float() {
                t.to_f64().ok().map(|v| format!("{}", v[0]))
            } else {
                t.to_i64().ok().map(|v| v[0].to_string())
            };
            text.unwrap_or_else(|| format!("{e:?}"))
        };
        format!(
            "constants {}{:?} differ in {count} of {} elements, first at {index:?}: {} and {}",
            x.dtype,
            x.dims,
            self.len(a),
            show(u),
            show(v)
        )
    }
}

/// The message of a tensor without its name.
fn message(t: &Tensor) -> Option<Vec<u8>> {
    if let Parts::Sparse(p) = t.parts() {
        let mut p = p.clone();
        p.values.mut_or_insert_default().name.clear();
        return p.write_to_bytes().ok();
    }
    let mut p = t.message()?.clone();
    p.name.clear();
    p.doc_string.clear();
    p.write_to_bytes().ok()
}

/// A hash that only sorts candidates; four lanes keep it at the speed of memory.
fn hash(bytes: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut lanes = [K, !K, K << 1, K >> 1];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(K).rotate_left(29);
        }
    }
    let mut h = bytes.len() as u64;
    for lane in lanes {
        h = (h ^ lane).wrapping_mul(K).rotate_left(31);
    }
    for b in rest {
        h = (h ^ *b as u64).wrapping_mul(K).rotate_left(23);
    }
    h
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::SharedBytes;
    use onnx_protobuf::TensorProto;

    #[test]
    fn packed_elements_are_told_apart() {
        let head = TensorProto { dims: vec![4], data_type: 22, ..Default::default() };
        let of = |bytes: [u8; 2]| Tensor::from_slice(head.clone(), SharedBytes::new(bytes.to_vec())).unwrap();
        let (a, b, c) = (of([1, 2]), of([1, 3]), of([1, 2]));
        let mut constants = Constants::default();
        let (a, b, c) = (constants.of_tensor(&a), constants.of_tensor(&b), constants.of_tensor(&c));
        assert!(a != b && a == c);
    }
}

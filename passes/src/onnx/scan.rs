//! Takes a model file apart without copying its weights: the messages are parsed, and large `raw_data` of the main graph's
//! initializers stays where it is in the file.

use super::import::ImportError;
use onnx_protobuf::{GraphProto, Message, ModelProto, TensorProto};
use std::ops::Range;

/// `raw_data` below this is parsed with its message.
const SMALLEST_SLICE: usize = 1024;

/// A model without its initializers, and those.
pub(super) struct Scanned {
    /// The model, its graph without initializers.
    pub(super) model: ModelProto,
    /// Each initializer's message; where its `raw_data` is left in the file, the message lacks it and this is the place.
    pub(super) initializers: Vec<(TensorProto, Option<Range<usize>>)>,
}

const MODEL_GRAPH: u64 = 7;
const GRAPH_INITIALIZER: u64 = 5;
const TENSOR_RAW_DATA: u64 = 9;

/// Scans a model file.
pub(super) fn scan(bytes: &[u8]) -> Result<Scanned, ImportError> {
    let (mut outside, mut graph, mut tensors) = (Vec::new(), None, Vec::new());
    let mut fields = Fields::new(bytes, 0..bytes.len(), "the model");
    while let Some(field) = fields.next()? {
        if !field.is_message(MODEL_GRAPH) {
            outside.extend_from_slice(&bytes[field.whole]);
            continue;
        }
        // A message that comes twice is merged: the reader of its bytes one after the other does that.
        let rest = graph.get_or_insert_with(Vec::new);
        let mut fields = Fields::new(bytes, field.payload, "the graph");
        while let Some(field) = fields.next()? {
            if field.is_message(GRAPH_INITIALIZER) {
                tensors.push(field.payload);
            } else {
                rest.extend_from_slice(&bytes[field.whole]);
            }
        }
    }
    let mut model = ModelProto::parse_from_bytes(&outside).map_err(|e| unreadable("the model", e))?;
    drop(outside);
    if let Some(graph) = graph {
        model.graph = Some(GraphProto::parse_from_bytes(&graph).map_err(|e| unreadable("the graph", e))?).into();
    }
    let initializers = tensors.into_iter().map(|range| tensor(bytes, range)).collect::<Result<_, _>>()?;
    Ok(Scanned { model, initializers })
}

fn unreadable(what: &str, e: protobuf::Error) -> ImportError {
    let e = e.to_string();
    let why = if e.contains("recursion") { "its messages are nested too deeply" } else { &e };
    ImportError::Damaged(format!("{what} cannot be decoded: {why}"))
}

fn tensor(bytes: &[u8], range: Range<usize>) -> Result<(TensorProto, Option<Range<usize>>), ImportError> {
    let parse = |message: &[u8]| TensorProto::parse_from_bytes(message).map_err(|e| unreadable("an initializer", e));
    if range.len() < SMALLEST_SLICE {
        return Ok((parse(&bytes[range])?, None));
    }
    let (mut head, mut raw) = (Vec::new(), None);
    let mut fields = Fields::new(bytes, range.clone(), "an initializer");
    while let Some(field) = fields.next()? {
        if field.is_message(TENSOR_RAW_DATA) {
            raw = Some(field.payload);
        } else if field.whole.len() >= SMALLEST_SLICE {
            // The elements are in typed fields, which have to be parsed.
            return Ok((parse(&bytes[range])?, None));
        } else {
            head.extend_from_slice(&bytes[field.whole]);
        }
    }
    match raw {
        Some(raw) if raw.len() >= SMALLEST_SLICE => Ok((parse(&head)?, Some(raw))),
        _ => Ok((parse(&bytes[range])?, None)),
    }
}

/// One field of a message: all of its bytes, and the bytes of a message after its tag and length.
struct Field {
    number: u64,
    wire: u64,
    whole: Range<usize>,
    payload: Range<usize>,
}

impl Field {
    fn is_message(&self, number: u64) -> bool {
        self.number == number && self.wire == 2
    }
}

/// The fields of one message, in their order.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    what: &'static str,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8], range: Range<usize>, what: &'static str) -> Fields<'a> {
        Fields { bytes, at: range.start, end: range.end, what }
    }

    fn next(&mut self) -> Result<Option<Field>, ImportError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint()?;
        let (number, wire) = (tag >> 3, tag & 7);
        let length = match wire {
            0 => self.varint().map(|_| 0)?,
            1 => 8,
            2 => self.varint()?,
            5 => 4,
            _ => 0,
        };
        if number == 0 || !matches!(wire, 0 | 1 | 2 | 5) {
            return Err(self.damaged(start, "starts with no field of an ONNX message"));
        }
        let from = self.at;
        let end = usize::try_from(length).ok().and_then(|n| from.checked_add(n)).filter(|end| *end <= self.end);
        let cut_off = || format!("has a field of {length} bytes, more than are left; the file is cut off");
        self.at = end.ok_or_else(|| self.damaged(start, &cut_off()))?;
        Ok(Some(Field { number, wire, whole: start..self.at, payload: from..self.at }))
    }

    fn varint(&mut self) -> Result<u64, ImportError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(byte) = self.bytes[..self.end].get(self.at) else {
                return Err(self.damaged(self.at, "ends within a field; the file is cut off"));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged(self.at, "has a number of more than 64 bits"))
    }

    fn damaged(&self, at: usize, what: &str) -> ImportError {
        ImportError::Damaged(format!("{} {what} (byte {at} of {})", self.what, self.bytes.len()))
    }
}

//! What goes between the tool and an engine in a process of its own. A message is a head in JSON, followed by the bytes that it
//! speaks of (a model, tensors), which are never turned into text.

use super::{EngineError, Tensors};
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{DType, Dim, ValueType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::PathBuf;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Request {
    /// Load the model that follows, as the session of this number; external data lies in `root`.
    Load { session: u64, engine: String, root: Option<PathBuf>, most_memory: u64 },
    /// Open the model that follows and forget it. Without a model, load the engine itself.
    Open { engine: String, root: Option<PathBuf>, most_memory: u64 },
    /// Open a model file as a training run does, and write the optimised graph if a place is given.
    #[cfg(feature = "ort")]
    OpenFile { path: PathBuf, engine: super::ort::OrtEngine, optimised: Option<PathBuf> },
    /// What the ONNX Runtime in use says of itself.
    #[cfg(feature = "ort")]
    About,
    /// Run a session on the tensors that follow.
    Run { session: u64, inputs: Vec<TensorHead> },
    /// The types of the results of the one node of the model that follows. Its operands are inputs, of which this is known by
    /// name, or initializers where they are constants.
    Types { known: Vec<(String, Known)> },
    /// Forget a session. There is no answer.
    Drop { session: u64 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Reply {
    Loaded,
    #[cfg(feature = "ort")]
    About(super::ort::About),
    /// The outputs, whose elements follow.
    Outputs(Vec<TensorHead>),
    /// Types of results, if there is an answer.
    Types(Option<Vec<Known>>),
}

/// A message with the bytes that follow its head.
pub(super) type Message<T> = (T, Vec<Vec<u8>>);

pub(super) type Answer = Result<Reply, EngineError>;

/// Name, element type and shape of a tensor.
type TensorHead = (String, i32, Vec<usize>);

/// The terms of a symbolic extent: products of symbols, each with its factor.
type Terms = Vec<(Vec<String>, i64)>;

/// What is known of a value: its type, and where it takes part in the arithmetic on shapes its shape and elements.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    dtype: Option<i32>,
    shape: Option<Vec<Terms>>,
    elements: Option<(Vec<i64>, Vec<Terms>)>,
}

impl Known {
    pub(super) fn new(ty: &ValueType, elements: Option<(Vec<i64>, Vec<Dim>)>) -> Known {
        let of = |dims: &[Dim]| dims.iter().map(terms).collect();
        Known {
            dtype: ty.dtype.map(DType::onnx),
            shape: ty.shape.as_deref().map(of),
            elements: elements.map(|(shape, elements)| (shape, of(&elements))),
        }
    }

    pub(super) fn ty(&self) -> ValueType {
        let shape = self.shape.as_ref().map(|dims| dims.iter().map(dim).collect());
        ValueType { dtype: self.dtype.and_then(DType::from_onnx), shape }
    }

    pub(super) fn elements(&self) -> Option<(Vec<i64>, Vec<Dim>)> {
        self.elements.as_ref().map(|(shape, elements)| (shape.clone(), elements.iter().map(dim).collect()))
    }
}

fn terms(d: &Dim) -> Terms {
    d.terms().map(|(names, factor)| (names.iter().map(|n| n.to_string()).collect(), factor)).collect()
}

fn dim(terms: &Terms) -> Dim {
    let product = |(names, factor): &(Vec<String>, i64)| {
        names.iter().fold(Dim::from(*factor), |product, name| &product * &Dim::symbol(name))
    };
    terms.iter().fold(Dim::from(0), |sum, term| &sum + &product(term))
}

pub(super) fn send(w: &mut impl Write, head: &impl Serialize, blobs: &[&[u8]]) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    w.write_all(&(blobs.len() as u64).to_le_bytes())?;
    for part in [&head[..]].iter().chain(blobs) {
        w.write_all(&(part.len() as u64).to_le_bytes())?;
        w.write_all(part)?;
    }
    w.flush()
}

/// Reads the next message. At the end of the stream that is an error too.
pub(super) fn receive<T: DeserializeOwned>(r: &mut impl Read) -> io::Result<Message<T>> {
    let count = number(r)?;
    let head = serde_json::from_slice(&part(r)?)?;
    Ok((head, (0..count).map(|_| part(r)).collect::<io::Result<_>>()?))
}

/// As [`receive`], an answer of the engine of this name.
pub(super) fn receive_answer(r: &mut impl Read, name: &'static str) -> io::Result<Message<Answer>> {
    use EngineError::{Died, Load, Panicked, Run, Unsupported};
    let (mut answer, blobs) = receive::<Answer>(r)?;
    if let Err(
        Unsupported { engine, .. }
        | Load { engine, .. }
        | Run { engine, .. }
        | Died { engine, .. }
        | Panicked { engine, .. },
    ) = &mut answer
    {
        *engine = name;
    }
    Ok((answer, blobs))
}

fn number(r: &mut impl Read) -> io::Result<u64> {
    let mut all = [0; 8];
    r.read_exact(&mut all)?;
    Ok(u64::from_le_bytes(all))
}

fn part(r: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = number(r)?;
    let mut all = Vec::new();
    r.take(length).read_to_end(&mut all)?;
    if all.len() as u64 == length { Ok(all) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

pub(super) fn heads(all: &Tensors) -> Vec<TensorHead> {
    all.iter().map(|(name, t)| (name.clone(), t.dtype().onnx(), t.shape().to_vec())).collect()
}

pub(super) fn blobs(all: &Tensors) -> Vec<&[u8]> {
    all.values().map(NpTensor::bytes).collect()
}

/// Tensors of their heads and bytes; `None` when these do not fit.
pub(super) fn tensors(heads: Vec<TensorHead>, blobs: Vec<Vec<u8>>) -> Option<Tensors> {
    let tensor = |((name, dtype, shape), data): (TensorHead, Vec<u8>)| {
        Some((name, NpTensor::new(DType::from_onnx(dtype)?, &shape, data)?))
    };
    heads.into_iter().zip(blobs).map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_arrive_as_they_were_sent() {
        let x = NpTensor::from_f64s(DType::F16, &[2, 1], &[1.5, -2.0]).unwrap();
        let inputs = Tensors::from([("x".to_string(), x), ("n".to_string(), NpTensor::i64s(&[0], &[]).unwrap())]);
        let load = |root: Option<PathBuf>| Request::Load { session: 3, engine: "tract".into(), root, most_memory: u64::MAX };
        let dims = vec![&(&Dim::symbol("batch size") * &Dim::from(12)) + &Dim::from(i64::MIN), Dim::from(0)];
        let ty = ValueType { dtype: Some(DType::I64), shape: Some(dims.clone()) };
        let known = Known::new(&ty, Some((vec![2], dims.clone())));
        assert_eq!((known.ty(), known.elements()), (ty, Some((vec![2], dims))));
        let open = Known::new(&ValueType::default(), None);
        assert_eq!((open.ty(), open.elements()), (ValueType::default(), None));
        let types = Request::Types { known: vec![("x".into(), known.clone()), ("y".into(), open.clone())] };
        let run = Request::Run { session: 3, inputs: heads(&inputs) };
        let sent: [(_, Vec<&[u8]>); 5] = [
            (load(None), vec![&[1, 2, 3]]),
            (load(Some("".into())), vec![&[]]),
            (run, blobs(&inputs)),
            (types, vec![&[5]]),
            (Request::Drop { session: 3 }, vec![]),
        ];
        let mut pipe = Vec::new();
        sent.iter().for_each(|(request, blobs)| send(&mut pipe, request, blobs).unwrap());
        let mut r = pipe.as_slice();
        for (request, blobs) in sent {
            let (got, bytes) = receive::<Request>(&mut r).unwrap();
            assert_eq!(bytes, blobs);
            if let Request::Run { inputs: heads, .. } = &got {
                assert_eq!(tensors(heads.clone(), bytes), Some(inputs.clone()));
            }
            assert_eq!(got, request);
        }
        assert!(receive::<Request>(&mut r).is_err());

        let engine = "tract";
        let unsupported = EngineError::Unsupported { engine, operator: "Odd".into(), node: "n".into(), why: "none".into() };
        for answer in [
            Ok(Reply::Outputs(heads(&inputs))),
            Ok(Reply::Types(Some(vec![known, open]))),
            Err(unsupported),
            Err(EngineError::Input { name: "x".into(), why: "cut".into() }),
        ] {
            let mut pipe = Vec::new();
            send(&mut pipe, &answer, &[]).unwrap();
            assert!(receive_answer(&mut &pipe[..pipe.len() - 1], engine).is_err());
            let (back, _) = receive_answer(&mut pipe.as_slice(), engine).unwrap();
            assert_eq!(format!("{back:?}"), format!("{answer:?}"));
        }
    }
}

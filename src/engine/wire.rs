//! What goes between the tool and an engine in a process of its own: requests and answers, little-endian, each text and each
//! tensor after its length.

use super::{EngineError, Tensors};
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{DType, Dim, ValueType};
use std::io::{self, Read, Write};

/// What is known of a value: its type, and where it takes part in the arithmetic on shapes its shape and elements.
pub(super) type Known = (ValueType, Option<(Vec<i64>, Vec<Dim>)>);

/// What is asked for.
#[derive(Debug, PartialEq)]
pub(super) enum Request {
    /// Load a model, as the session of this number.
    Load {
        /// Number of the session.
        session: u64,
        /// The engine's name.
        engine: String,
        /// Where external data lies.
        root: Option<String>,
        /// Most bytes of memory to use from now on.
        most_memory: u64,
        /// The model.
        model: Vec<u8>,
    },
    /// Run a session.
    Run {
        /// Number of the session.
        session: u64,
        /// What it is fed.
        inputs: Tensors,
    },
    /// The types of the results of a model's one node.
    Types {
        /// The model: the node, its operands as inputs or, where they are constants, as initializers.
        model: Vec<u8>,
        /// What is known of operands, by name.
        known: Vec<(String, Known)>,
    },
    /// Forget a session. There is no answer.
    Drop {
        /// Number of the session.
        session: u64,
    },
}

/// What is answered.
#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    /// Outputs; none after loading.
    Tensors(Tensors),
    /// Types of results, if there is an answer.
    Types(Option<Vec<Known>>),
}

/// The answer.
pub(super) type Answer = Result<Reply, EngineError>;

impl Request {
    pub(super) fn write(&self, w: &mut impl Write) -> io::Result<()> {
        match self {
            Request::Load { session, engine, root, most_memory, model } => {
                numbers(w, &[0, *session, *most_memory])?;
                bytes(w, engine.as_bytes())?;
                numbers(w, &[root.is_some() as u64])?;
                bytes(w, root.as_deref().unwrap_or_default().as_bytes())?;
                bytes(w, model)?;
            }
            Request::Run { session, inputs } => {
                numbers(w, &[1, *session])?;
                tensors(w, inputs)?;
            }
            Request::Drop { session } => numbers(w, &[2, *session])?,
            Request::Types { model, known } => {
                numbers(w, &[3])?;
                bytes(w, model)?;
                numbers(w, &[known.len() as u64])?;
                for (name, k) in known {
                    bytes(w, name.as_bytes())?;
                    write_known(w, k)?;
                }
            }
        }
        w.flush()
    }

    /// The next request; `None` when there are no more.
    pub(super) fn read(r: &mut impl Read) -> io::Result<Option<Request>> {
        let kind = match read_number(r) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            kind => kind?,
        };
        if kind == 3 {
            let model = read_bytes(r)?;
            let known = (0..read_number(r)?).map(|_| Ok((read_text(r)?, read_known(r)?))).collect::<io::Result<_>>()?;
            return Ok(Some(Request::Types { model, known }));
        }
        let session = read_number(r)?;
        Ok(Some(match kind {
            0 => {
                let most_memory = read_number(r)?;
                let engine = read_text(r)?;
                let (has_root, root) = (read_number(r)? == 1, read_text(r)?);
                Request::Load { session, engine, root: has_root.then_some(root), most_memory, model: read_bytes(r)? }
            }
            1 => Request::Run { session, inputs: read_tensors(r)? },
            2 => Request::Drop { session },
            _ => return Err(damaged()),
        }))
    }
}

pub(super) fn write_answer(w: &mut impl Write, answer: &Answer) -> io::Result<()> {
    match answer {
        Ok(Reply::Tensors(outputs)) => {
            numbers(w, &[0])?;
            tensors(w, outputs)?;
        }
        Ok(Reply::Types(types)) => {
            numbers(w, &[7, types.is_some() as u64, types.as_ref().map_or(0, Vec::len) as u64])?;
            types.iter().flatten().try_for_each(|k| write_known(w, k))?;
        }
        Err(e) => {
            let (kind, texts): (u64, [&str; 4]) = match e {
                EngineError::Unsupported { engine, operator, node, why } => (1, [engine, operator, node, why]),
                EngineError::Load { engine, why } => (2, [engine, why, "", ""]),
                EngineError::Run { engine, why } => (3, [engine, why, "", ""]),
                EngineError::Input { name, why } => (4, [name, why, "", ""]),
                EngineError::NoRuntime(why) => (5, [why, "", "", ""]),
                EngineError::Died { engine, how } => (6, [engine, how, "", ""]),
            };
            numbers(w, &[kind])?;
            texts.iter().try_for_each(|t| bytes(w, t.as_bytes()))?;
        }
    }
    w.flush()
}

pub(super) fn read_answer(r: &mut impl Read, engine: &'static str) -> io::Result<Answer> {
    let kind = read_number(r)?;
    if kind == 0 {
        return Ok(Ok(Reply::Tensors(read_tensors(r)?)));
    }
    if kind == 7 {
        let (answered, count) = (read_number(r)? == 1, read_number(r)?);
        let types = (0..count).map(|_| read_known(r)).collect::<io::Result<Vec<_>>>()?;
        return Ok(Ok(Reply::Types(answered.then_some(types))));
    }
    let [a, b, c, d] = [read_text(r)?, read_text(r)?, read_text(r)?, read_text(r)?];
    Ok(Err(match kind {
        1 => EngineError::Unsupported { engine, operator: b, node: c, why: d },
        2 => EngineError::Load { engine, why: b },
        3 => EngineError::Run { engine, why: b },
        4 => EngineError::Input { name: a, why: b },
        5 => EngineError::NoRuntime(a),
        6 => EngineError::Died { engine, how: b },
        _ => return Err(damaged()),
    }))
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "what came from the other process makes no sense")
}

fn numbers(w: &mut impl Write, all: &[u64]) -> io::Result<()> {
    all.iter().try_for_each(|n| w.write_all(&n.to_le_bytes()))
}

fn bytes(w: &mut impl Write, all: &[u8]) -> io::Result<()> {
    numbers(w, &[all.len() as u64])?;
    w.write_all(all)
}

fn tensors(w: &mut impl Write, all: &Tensors) -> io::Result<()> {
    numbers(w, &[all.len() as u64])?;
    for (name, t) in all {
        bytes(w, name.as_bytes())?;
        numbers(w, &[t.dtype().onnx() as u64, t.shape().len() as u64])?;
        t.shape().iter().try_for_each(|d| numbers(w, &[*d as u64]))?;
        bytes(w, t.bytes())?;
    }
    Ok(())
}

fn read_number(r: &mut impl Read) -> io::Result<u64> {
    let mut all = [0; 8];
    r.read_exact(&mut all)?;
    Ok(u64::from_le_bytes(all))
}

fn read_bytes(r: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = read_number(r)?;
    let mut all = Vec::new();
    r.take(length).read_to_end(&mut all)?;
    if all.len() as u64 == length { Ok(all) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn read_text(r: &mut impl Read) -> io::Result<String> {
    String::from_utf8(read_bytes(r)?).map_err(|_| damaged())
}

fn read_tensors(r: &mut impl Read) -> io::Result<Tensors> {
    let count = read_number(r)?;
    let mut all = Tensors::new();
    for _ in 0..count {
        let name = read_text(r)?;
        let dtype = i32::try_from(read_number(r)?).ok().and_then(DType::from_onnx).ok_or_else(damaged)?;
        let rank = read_number(r)?;
        let shape = (0..rank).map(|_| Ok(read_number(r)? as usize)).collect::<io::Result<Vec<usize>>>()?;
        all.insert(name, NpTensor::new(dtype, &shape, read_bytes(r)?).ok_or_else(damaged)?);
    }
    Ok(all)
}

fn write_known(w: &mut impl Write, (ty, elements): &Known) -> io::Result<()> {
    numbers(w, &[ty.dtype.map_or(0, |t| t.onnx() as u64), ty.shape.is_some() as u64])?;
    write_dims(w, ty.shape.as_deref().unwrap_or_default())?;
    numbers(w, &[elements.is_some() as u64])?;
    if let Some((shape, elements)) = elements {
        write_dims(w, &shape.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>())?;
        write_dims(w, elements)?;
    }
    Ok(())
}

fn read_known(r: &mut impl Read) -> io::Result<Known> {
    let dtype = i32::try_from(read_number(r)?).ok().and_then(DType::from_onnx);
    let (has_shape, shape) = (read_number(r)? == 1, read_dims(r)?);
    let ty = ValueType { dtype, shape: has_shape.then_some(shape) };
    if read_number(r)? == 0 {
        return Ok((ty, None));
    }
    let shape = read_dims(r)?.iter().map(Dim::known).collect::<Option<_>>().ok_or_else(damaged)?;
    Ok((ty, Some((shape, read_dims(r)?))))
}

fn write_dims(w: &mut impl Write, dims: &[Dim]) -> io::Result<()> {
    numbers(w, &[dims.len() as u64])?;
    for d in dims {
        numbers(w, &[d.terms().count() as u64])?;
        for (names, factor) in d.terms() {
            numbers(w, &[factor as u64, names.len() as u64])?;
            names.iter().try_for_each(|n| bytes(w, n.as_bytes()))?;
        }
    }
    Ok(())
}

fn read_dims(r: &mut impl Read) -> io::Result<Vec<Dim>> {
    let count = read_number(r)?;
    let mut dims = Vec::new();
    for _ in 0..count {
        let mut sum = Dim::from(0);
        for _ in 0..read_number(r)? {
            let (mut product, names) = (Dim::from(read_number(r)? as i64), read_number(r)?);
            for _ in 0..names {
                product = &product * &Dim::symbol(&read_text(r)?);
            }
            sum = &sum + &product;
        }
        dims.push(sum);
    }
    Ok(dims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_arrive_as_they_were_sent() {
        let x = NpTensor::from_f64s(DType::F16, &[2, 1], &[1.5, -2.0]).unwrap();
        let inputs = Tensors::from([("x".to_string(), x), ("n".to_string(), NpTensor::i64s(&[0], &[]).unwrap())]);
        let load = |root: Option<&str>| Request::Load {
            session: 3,
            engine: "tract".into(),
            root: root.map(str::to_string),
            most_memory: 1 << 40,
            model: vec![1, 2, 3],
        };
        let dims = vec![&(&Dim::symbol("batch size") * &Dim::from(12)) + &Dim::from(-3), Dim::from(0)];
        let known: Known = (ValueType { dtype: Some(DType::I64), shape: Some(dims.clone()) }, Some((vec![2], dims.clone())));
        let open: Known = (ValueType::default(), None);
        let sent = [
            load(None),
            load(Some("")),
            Request::Run { session: 3, inputs: inputs.clone() },
            Request::Types { model: vec![5], known: vec![("x".into(), known.clone()), ("y".into(), open.clone())] },
            Request::Drop { session: 3 },
        ];
        let mut pipe = Vec::new();
        sent.iter().for_each(|r| r.write(&mut pipe).unwrap());
        let mut r = pipe.as_slice();
        for request in &sent {
            assert_eq!(Request::read(&mut r).unwrap().as_ref(), Some(request));
        }
        assert_eq!(Request::read(&mut r).unwrap(), None);

        let engine = "tract";
        let unsupported = EngineError::Unsupported { engine, operator: "Odd".into(), node: "n".into(), why: "none".into() };
        for answer in [
            Ok(Reply::Tensors(inputs)),
            Ok(Reply::Types(Some(vec![known, open]))),
            Err(unsupported),
            Err(EngineError::Input { name: "x".into(), why: "cut".into() }),
        ] {
            let mut pipe = Vec::new();
            write_answer(&mut pipe, &answer).unwrap();
            assert!(read_answer(&mut &pipe[..pipe.len() - 1], engine).is_err());
            let back = read_answer(&mut pipe.as_slice(), engine).unwrap();
            assert_eq!(format!("{back:?}"), format!("{answer:?}"));
        }
    }
}

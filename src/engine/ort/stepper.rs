//! A loop over a graph in ONNX Runtime whose state never leaves the device: what one run hands out as the next state is fed to
//! the next run as it is.

use super::device::{Device, memory_of};
use super::{OrtSession, from_ort, run_error, to_ort};
use crate::engine::{EngineError, Tensors};
use crate::io::tensor::NpTensor;
use indexmap::IndexMap;
use ort::memory::{AllocationDevice, MemoryInfo};
use ort::session::IoBinding;
use ort::value::{DynTensorValueType, DynValue};
use std::borrow::Cow;

/// What an output is to the loop.
#[derive(Clone, Copy)]
enum OutputUse {
    /// The next value of the state of this number.
    State(usize),
    /// Read by the loop.
    Read(usize),
    Unused,
}

/// What becomes of a state in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// The output that gives its next value.
    pub output: Option<String>,
    /// May that be written over it? So says the graph's `ancre.state`.
    pub in_place: bool,
    /// Is it to lie in the host's memory, whatever the device?
    pub on_host: bool,
}

impl std::ops::Add for Traffic {
    type Output = Traffic;

    /// Of two sessions that make one step.
    fn add(self, other: Traffic) -> Traffic {
        Traffic { fed: self.fed + other.fed, read: self.read + other.read, runs: self.runs.max(other.runs) }
    }
}

/// Bytes that crossed between the host's memory and ONNX Runtime's, all steps together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub fed: u64,
    pub read: u64,
    pub runs: u64,
}

/// An output that the loop reads, in the host's memory.
pub(crate) struct Read(DynValue);

impl Read {
    /// Shape and elements of a float32 or float64 output.
    pub(crate) fn f32s(&self) -> Option<(Vec<usize>, Cow<'_, [f32]>)> {
        let dims = |shape: &[i64]| shape.iter().map(|d| *d as usize).collect();
        if let Ok((shape, data)) = self.0.try_extract_tensor::<f64>() {
            return Some((dims(shape), data.iter().map(|v| *v as f32).collect()));
        }
        let (shape, data) = self.0.try_extract_tensor::<f32>().ok()?;
        Some((dims(shape), Cow::Borrowed(data)))
    }

    /// The first element of such an output; NaN of any other.
    pub(crate) fn number(&self) -> f64 {
        self.f32s().and_then(|(_, data)| data.first().copied()).map_or(f64::NAN, f64::from)
    }
}

/// Tensors as ONNX Runtime's own values, on the device after the first step that produced them.
#[derive(Default)]
pub(crate) struct DeviceState {
    /// By the name of the input; nothing while the default in the graph holds.
    values: IndexMap<String, Option<Held>>,
    /// Those after the first so many only pass from one session to another.
    own: usize,
}

struct Held {
    value: DynValue,
    /// Did a run make it? What the host made is not on the device, and ONNX Runtime must not write to it.
    made: bool,
}

impl DeviceState {
    /// The values that are there, by name, brought to the host.
    pub(crate) fn tensors(&self) -> Result<Tensors, EngineError> {
        self.some(|_| true)
    }

    /// From now on those after the first `own` only pass from one session to another: what is said of the state leaves them out.
    pub(crate) fn owns(&mut self, own: usize) {
        self.own = own;
    }

    /// Those that are wanted.
    pub(crate) fn some(&self, wanted: impl Fn(&str) -> bool) -> Result<Tensors, EngineError> {
        let own = self.values.iter().take(self.own);
        let there = own.filter_map(|(n, v)| Some((n, v.as_ref()?))).filter(|(n, _)| wanted(n));
        there.map(|(n, held)| Ok((n.clone(), on_host(n, &held.value)?))).collect()
    }

    /// One of them.
    pub(crate) fn tensor(&self, name: &str) -> Option<NpTensor> {
        on_host(name, self.get(name)?).ok()
    }

    /// At most `most` elements of one of them, from all over it. Of float32 in the host's memory no others are copied.
    pub(crate) fn sample(&self, name: &str, most: usize) -> Option<Vec<f32>> {
        let every = |n: usize| n.div_ceil(most).max(1);
        match self.get(name)?.try_extract_tensor::<f32>() {
            Ok((_, data)) => Some(data.iter().step_by(every(data.len())).copied().collect()),
            Err(_) => self.tensor(name).map(|t| t.to_f32().into_iter().step_by(every(t.len())).collect()),
        }
    }

    /// Puts tensors in; names it does not know are left out. Fails when one has an element type that cannot be fed.
    pub(crate) fn set(&mut self, tensors: &Tensors) -> Result<(), EngineError> {
        for (name, value) in &mut self.values {
            if let Some(t) = tensors.get(name) {
                *value = Some(Held { value: to_ort(name, t)?, made: false });
            }
        }
        Ok(())
    }

    /// Takes the state back to what [`DeviceState::tensors`] gave; a tensor that was not there has the graph's default again.
    pub(crate) fn put_back(&mut self, tensors: &Tensors) -> Result<(), EngineError> {
        self.values.values_mut().take(self.own).for_each(|v| *v = None);
        self.set(tensors)
    }

    /// Hands the elements of float32 tensors that lie on the host, end to end, to `change`, as many tensors at once as fit into so many
    /// elements, and puts back what it made of them. A tensor that is not there yet is left out.
    pub(crate) fn in_buckets(
        &mut self,
        names: &[String],
        elements: usize,
        bucket: &mut Vec<f32>,
        change: &mut dyn FnMut(&mut [f32]),
    ) -> Result<(), EngineError> {
        let mut from = 0;
        while from < names.len() {
            bucket.clear();
            let mut to = from;
            while let Some(name) = names.get(to) {
                let value = self.values.get_mut(name).and_then(Option::as_mut);
                let Some(held) = value else {
                    to += 1;
                    continue;
                };
                let (_, data) = held.value.try_extract_tensor::<f32>().map_err(run_error)?;
                if to > from && bucket.len() + data.len() > elements {
                    break;
                }
                bucket.extend_from_slice(data);
                to += 1;
            }
            change(bucket);
            let mut rest = bucket.as_slice();
            for name in &names[from..to] {
                let Some(held) = self.values.get_mut(name).and_then(Option::as_mut) else { continue };
                let (_, data) = held.value.try_extract_tensor_mut::<f32>().map_err(run_error)?;
                let (own, left) = rest.split_at(data.len());
                data.copy_from_slice(own);
                rest = left;
            }
            from = to;
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&DynValue> {
        Some(&self.values.get(name)?.as_ref()?.value)
    }
}

/// Copies a value to the host unless it is there.
fn on_host(name: &str, v: &DynValue) -> Result<NpTensor, EngineError> {
    let tensor = v.view().downcast::<DynTensorValueType>().map_err(run_error)?;
    if tensor.memory_info().is_cpu_accessible() {
        return from_ort(name, v);
    }
    from_ort(name, &tensor.to(AllocationDevice::CPU, 0).map_err(run_error)?.into_dyn())
}

/// A session together with the wiring of its state.
pub(crate) struct Stepper {
    session: OrtSession,
    device: Device,
    uses: Vec<OutputUse>,
    outputs: Vec<String>,
    read: usize,
    /// By their place in the state: are they overwritten?
    in_place: Vec<bool>,
    /// By their place in the state: are they to lie on the host?
    on_host: Vec<bool>,
    /// By their place in the state: do they stay as they are, whatever a step computes?
    held: Vec<bool>,
    /// What was fed last: an output that is an input as it came shares its memory.
    alive: Vec<DynValue>,
    traffic: Traffic,
}

impl Stepper {
    /// Wires a session: `carried` maps state inputs to what becomes of them, `read` names the outputs that come back to the
    /// host, in the order in which [`Stepper::step`] returns them. Fails when the session lacks an output that is to be
    /// read.
    pub(crate) fn new(
        session: OrtSession,
        device: Device,
        carried: &IndexMap<String, Carried>,
        read: &[&str],
    ) -> Result<(Stepper, DeviceState), EngineError> {
        let outputs: Vec<String> = session.outputs().map(str::to_string).collect();
        if let Some(name) = read.iter().find(|r| !outputs.iter().any(|o| o == *r)) {
            return Err(EngineError::Input { name: name.to_string(), why: "the graph has no such output".into() });
        }
        let by_output: IndexMap<&str, usize> =
            carried.values().enumerate().filter_map(|(i, c)| Some((c.output.as_deref()?, i))).collect();
        let use_of = |o: &String| match (by_output.get(o.as_str()), read.iter().position(|r| r == o)) {
            (Some(i), _) => OutputUse::State(*i),
            (None, Some(i)) => OutputUse::Read(i),
            (None, None) => OutputUse::Unused,
        };
        let uses = outputs.iter().map(use_of).collect();
        let state = DeviceState { values: carried.keys().map(|n| (n.clone(), None)).collect(), own: carried.len() };
        let in_place = carried.values().map(|c| c.in_place).collect();
        let on_host = carried.values().map(|c| c.on_host).collect();
        let (read, traffic, held) = (read.len(), Traffic::default(), vec![false; carried.len()]);
        Ok((Stepper { session, device, uses, outputs, read, in_place, on_host, held, alive: Vec::new(), traffic }, state))
    }

    /// From now on a state of which `stays` is true is not changed by a step. States are named by their inputs.
    pub(crate) fn hold(&mut self, state: &DeviceState, stays: impl Fn(&str) -> bool) {
        self.held = state.values.keys().map(|n| stays(n)).collect();
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// One run: `feeds` and the state go in, the next state replaces it, and the outputs to be read come back. The state may be
    /// another stepper's: this session is fed what it takes of it, and leaves as it is what it hands out no next value of. When a
    /// run fails, states that are overwritten may have changed, and the state is to be given up.
    pub(crate) fn step(&mut self, feeds: &Tensors, state: &mut DeviceState) -> Result<Vec<Read>, EngineError> {
        self.feed(feeds)?;
        let inputs = self.session.required.iter().chain(&self.session.optional);
        // What is fed comes before the state.
        let inputs = inputs.filter(|n| !feeds.contains_key(n.as_str()));
        let inputs: Vec<(&str, &DynValue)> = inputs.filter_map(|n| Some((n.as_str(), state.get(n)?))).collect();
        let mut binding = self.bind(feeds, inputs)?;
        let mut bound = Vec::with_capacity(self.outputs.len());
        let (device, host) = memories(self.device)?;
        for (name, used) in self.outputs.iter().zip(&self.uses) {
            let overwritten = match used {
                OutputUse::State(i) if self.in_place[*i] => state.values[*i].as_mut().filter(|held| held.made),
                _ => None,
            };
            if matches!(used, OutputUse::State(i) if self.held[*i]) {
                continue;
            }
            match (used, overwritten) {
                (_, Some(held)) => binding.bind_output(name.as_str(), &mut held.value),
                (OutputUse::State(i), None) if self.on_host[*i] => binding.bind_output_to_device(name.as_str(), &host),
                (OutputUse::State(_), None) => binding.bind_output_to_device(name.as_str(), &device),
                (OutputUse::Read(_), None) => binding.bind_output_to_device(name.as_str(), &host),
                (OutputUse::Unused, None) => continue,
            }
            .map_err(run_error)?;
            bound.push(*used);
        }
        let mut read: Vec<Option<Read>> = (0..self.read).map(|_| None).collect();
        for (used, (_, value)) in bound.into_iter().zip(self.session.session.run_binding(&binding).map_err(run_error)?) {
            match used {
                OutputUse::State(i) => state.values[i] = Some(Held { value, made: true }),
                OutputUse::Read(i) => read[i] = Some(Read(value)),
                OutputUse::Unused => {}
            }
        }
        let read: Vec<Read> = read.into_iter().flatten().collect();
        self.traffic.read += read.iter().map(|r| size(&r.0)).sum::<u64>();
        Ok(read)
    }

    fn feed(&mut self, feeds: &Tensors) -> Result<(), EngineError> {
        self.alive = feeds.iter().map(|(n, t)| to_ort(n, t)).collect::<Result<_, _>>()?;
        self.traffic.fed += self.alive.iter().map(size).sum::<u64>();
        self.traffic.runs += 1;
        Ok(())
    }

    /// A fresh binding with its inputs: outputs stay bound to their buffers, and the next state must not be written over the
    /// one it is computed from unless it may.
    fn bind(&self, feeds: &Tensors, states: Vec<(&str, &DynValue)>) -> Result<IoBinding, EngineError> {
        let mut binding = self.session.session.create_binding().map_err(run_error)?;
        for (name, value) in feeds.keys().map(String::as_str).zip(&self.alive).chain(states) {
            binding.bind_input(name, value).map_err(run_error)?;
        }
        Ok(binding)
    }
}

/// The memory of a device, and the host's.
fn memories(device: Device) -> Result<(MemoryInfo<'static>, MemoryInfo<'static>), EngineError> {
    Ok((memory_of(device).map_err(run_error)?, memory_of(Device::Cpu).map_err(run_error)?))
}

fn size(v: &DynValue) -> u64 {
    let ty = v.dtype();
    let count: i64 = ty.tensor_shape().map_or(0, |s| s.iter().product());
    let each = ty.tensor_type().and_then(|t| t.byte_size(1)).unwrap_or(0);
    count.max(0) as u64 * each as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ort::{OrtEngine, environment};
    use crate::engine::samples;

    #[test]
    fn the_state_goes_round_and_its_bytes_are_not_the_hosts() {
        if let Err(e) = environment() {
            eprintln!("skipped: {e}");
            return;
        }
        // y = x + w, fed back into w
        let open = || OrtEngine::default().open(&samples::sum(), None).unwrap();
        let feeds = Tensors::from([("x".to_string(), NpTensor::f32s(&[1, 2], &[1.0, 2.0]).unwrap())]);
        let place = |s: &DeviceState| s.get("w").unwrap().try_extract_tensor::<f32>().unwrap().1.as_ptr();
        let run = |in_place| {
            let carried =
                IndexMap::from([("w".to_string(), Carried { output: Some("y".to_string()), in_place, on_host: false })]);
            let (mut stepper, mut state) = Stepper::new(open(), Device::Cpu, &carried, &[]).unwrap();
            assert!(state.tensors().unwrap().is_empty());
            let places: Vec<_> = (0..3)
                .map(|_| {
                    assert!(stepper.step(&feeds, &mut state).unwrap().is_empty());
                    place(&state)
                })
                .collect();
            assert_eq!(state.tensors().unwrap()["w"].to_f32(), [13.0, 26.0]);
            assert_eq!(stepper.traffic(), Traffic { fed: 24, read: 0, runs: 3 });
            assert_eq!(places[0] == places[1] && places[1] == places[2], in_place, "{places:?}");
            (carried, stepper, state)
        };
        run(true);
        let (carried, mut stepper, mut state) = run(false);
        // Another session reads the state and does not change it.
        let (mut reader, _) = Stepper::new(open(), Device::Cpu, &IndexMap::new(), &["y"]).unwrap();
        let y = reader.step(&feeds, &mut state).unwrap();
        assert_eq!(y[0].f32s(), Some((vec![1, 2], Cow::Borrowed(&[14.0, 28.0][..]))));
        assert_eq!(state.tensors().unwrap()["w"].to_f32(), [13.0, 26.0]);
        state.set(&Tensors::from([("w".to_string(), NpTensor::f32s(&[1, 2], &[0.5, 0.5]).unwrap())])).unwrap();
        stepper.step(&feeds, &mut state).unwrap();
        assert_eq!(state.tensors().unwrap()["w"].to_f32(), [1.5, 2.5]);
        assert_eq!((state.sample("w", 1), state.sample("w", 2)), (Some(vec![1.5]), Some(vec![1.5, 2.5])));
        assert!(Stepper::new(open(), Device::Cpu, &carried, &["z"]).is_err());
    }
}

//! Where ONNX Runtime runs a graph: the CPU or a CUDA device, and how that is chosen.

use super::{OrtEngine, environment, locate};
use crate::engine::EngineError;
use ort::ep::{ArenaExtendStrategy, CPU, CUDA, ExecutionProvider, ExecutionProviderDispatch};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::GraphOptimizationLevel;
use std::fmt::{self, Display};
use std::str::FromStr;

/// A device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Device {
    /// The CPU provider.
    #[default]
    Cpu,
    /// The CUDA provider on the device of this number.
    Cuda(u32),
}

impl Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where it works, else the CPU.
    #[default]
    Auto,
    /// This one.
    Exactly(Device),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        let number = |n: &str| n.parse().map(|i| DeviceChoice::Exactly(Device::Cuda(i)));
        match text.split_once(':') {
            None if text == "auto" => Ok(DeviceChoice::Auto),
            None if text == "cpu" => Ok(DeviceChoice::Exactly(Device::Cpu)),
            None if text == "cuda" => Ok(DeviceChoice::Exactly(Device::Cuda(0))),
            Some(("cuda", n)) => number(n).map_err(|_| format!("`{n}` is no device number, as in cuda:0")),
            _ => Err("auto, cpu, cuda or cuda:N was expected".into()),
        }
    }
}

/// How far ONNX Runtime may rewrite a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
pub enum Optimization {
    /// Not at all.
    None,
    /// Rewrites that keep the operators.
    Basic,
    /// Also fusions.
    Extended,
    /// Also layouts.
    #[default]
    All,
}

impl Optimization {
    pub(super) fn of_ort(self) -> GraphOptimizationLevel {
        match self {
            Optimization::None => GraphOptimizationLevel::Disable,
            Optimization::Basic => GraphOptimizationLevel::Level1,
            Optimization::Extended => GraphOptimizationLevel::Level2,
            Optimization::All => GraphOptimizationLevel::All,
        }
    }
}

/// Why CUDA cannot be used, as far as that shows without loading a model; `None` if nothing speaks against it. Fails when no
/// runtime is there.
pub fn without_cuda() -> Result<Option<String>, EngineError> {
    environment()?;
    if CUDA::is_available().unwrap_or(false) {
        return Ok(None);
    }
    let runtime = locate()?;
    let version = runtime.version.map(|v| format!(" {v}")).unwrap_or_default();
    Ok(Some(format!(
        "the ONNX Runtime{version} in use has no CUDA provider (`ancre-rewrite runtime install --cuda` fetches one that has)"
    )))
}

/// The providers to register, the preferred one first. CUDA is an error where it cannot be had, never a silent CPU run.
pub(super) fn providers(engine: &OrtEngine) -> Vec<ExecutionProviderDispatch> {
    let cpu = CPU::default().with_arena_allocator(engine.arena).build();
    match engine.device {
        Device::Cpu => vec![cpu],
        Device::Cuda(id) => {
            let mut cuda = CUDA::default().with_device_id(id as i32).with_tf32(engine.tf32);
            if let Some(bytes) = engine.gpu_memory {
                cuda = cuda.with_memory_limit(bytes);
            }
            if !engine.arena {
                cuda = cuda.with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
            }
            vec![cuda.build().error_on_failure(), cpu]
        }
    }
}

pub(super) fn memory_of(device: Device) -> Result<MemoryInfo<'static>, ort::Error> {
    match device {
        Device::Cpu => MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::CPUOutput),
        Device::Cuda(id) => MemoryInfo::new(AllocationDevice::CUDA, id as i32, AllocatorType::Device, MemoryType::Default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_written() {
        for (text, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(DeviceChoice::Exactly(device)));
        }
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        for text in ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}

//! The training graph's file, and its session on a device.

use super::graph::TrainingGraph;
use super::ranks::Ranks;
use crate::cli::TrainArgs;
use crate::engine::EngineError;
use crate::engine::ort::device::{self, Device, DeviceChoice, Optimization};
use crate::engine::ort::{OrtEngine, OrtSession, environment};
use crate::error::Failure;
use crate::io::files;
use std::path::{Path, PathBuf};

/// The file of the training graph. Several ranks need a step in two graphs, and so does a name whose file was written as two.
pub(super) fn graph_file(model: &Path, ranks: &Ranks) -> PathBuf {
    let halves = || files::beside(model, "grad", ".onnx");
    let wanted = !ranks.is_alone() || !model.exists();
    if wanted { halves() } else { None }.unwrap_or_else(|| model.to_path_buf())
}

/// Opens the training graph on the device asked for; `auto` falls back to the CPU and says why.
pub(super) fn open_session(
    a: &TrainArgs,
    t: &TrainingGraph,
    ranks: &Ranks,
    notices: &mut Vec<String>,
) -> Result<(OrtEngine, OrtSession), Failure> {
    let fail = |e: EngineError| engine_failure(e, &t.path);
    environment().map_err(fail)?;
    // Ranks of one machine share its cores, and take a device each.
    let (local, beside) = ranks.local();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shared = (beside > 1).then(|| (cores / beside).max(1));
    let own = |device| match device {
        Device::Cuda(0) => Device::Cuda(local as u32),
        other => other,
    };
    let engine = |device| OrtEngine {
        threads: a.threads.map(|n| n as usize).or(shared),
        level: a.optimization,
        device,
        arena: !a.no_arena,
        memory_pattern: false,
        // A frozen base is read forwards and backwards, which would be two copies of it.
        prepack: t.adapted.is_empty(),
        denormals: false,
        blocks: a.optimization == Optimization::All && cfg!(target_arch = "x86_64"),
        tf32: a.tf32,
        gpu_memory: a.gpu_memory.map(|n| n as usize),
        ..OrtEngine::default()
    };
    let cuda = |device: Device| -> Result<Result<(OrtEngine, OrtSession), String>, Failure> {
        if let Some(why) = device::without_cuda().map_err(fail)? {
            return Ok(Err(why));
        }
        let engine = engine(device);
        Ok(engine.open_file_safely(&t.path, &t.graph).map(|session| (engine, session)).map_err(|e| e.to_string()))
    };
    match a.device {
        DeviceChoice::Exactly(Device::Cpu) => {}
        DeviceChoice::Exactly(device) => {
            let device = own(device);
            let help = "--device cpu, or --device auto to take CUDA only where it works";
            return cuda(device)?
                .map_err(|why| Failure::input(format!("--device {device} cannot be used: {why}")).help(help));
        }
        DeviceChoice::Auto => match cuda(own(Device::Cuda(0)))? {
            Ok(opened) => return Ok(opened),
            Err(why) => notices.push(format!("runs on the CPU: {why}")),
        },
    }
    let engine = engine(Device::Cpu);
    let session = engine.open_file_safely(&t.path, &t.graph).map_err(fail)?;
    Ok((engine, session))
}

pub(super) fn engine_failure(e: EngineError, path: &Path) -> Failure {
    match e {
        EngineError::NoRuntime(_) => Failure::input(e.to_string()),
        _ => Failure::input(e.to_string()).at(path),
    }
}

//! Graphs whose convolutions compute on channels in blocks. ONNX Runtime's optimiser lays out so what has constant weights; a training
//! graph's weights are fed, so that the passes do it.

use super::device::Device;
use super::{OrtEngine, OrtSession, REOPENED};
use ancre_passes::analysis::types::resolve_types;
use ancre_passes::ir::Graph;
use ancre_passes::onnx;
use ancre_passes::target::CPU_BLOCKS;
use ancre_passes::transform::block_convolutions::block_convolutions;
use std::path::Path;

impl OrtEngine {
    /// The session of a graph in blocks; `None` where the engine has no blocks, the graph nothing to lay out, or ONNX Runtime refuses it.
    pub(super) fn open_in_blocks(&self, g: &Graph, root: Option<&Path>) -> Option<OrtSession> {
        if !self.blocks || self.device != Device::Cpu {
            return None;
        }
        if !g.nodes().any(|n| g.is_op(n, "Conv")) {
            return None;
        }
        let mut g = g.clone();
        resolve_types(&mut g, None);
        if block_convolutions(&mut g, &CPU_BLOCKS).ok()? == 0 {
            return None;
        }
        let bytes = onnx::emit(&g).and_then(|e| e.to_bytes()).ok()?;
        if !onnx::external_files(&g).is_empty() || bytes.len() as u64 > REOPENED {
            return self.open_safely(&bytes, root).ok();
        }
        let place = tempfile::tempdir().ok()?;
        let file = place.path().join("blocks.onnx");
        std::fs::write(&file, bytes).ok()?;
        self.open_optimised(&file, true).ok()
    }
}

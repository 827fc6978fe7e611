//! Graphs whose convolutions compute on channels in blocks. ONNX Runtime's optimiser lays out so what has constant weights; a training
//! graph's weights are fed, so that the passes do it.

use super::device::Device;
use super::{OrtEngine, OrtSession, REOPENED};
use ancre_passes::analysis::types::resolve_types;
use ancre_passes::ir::Graph;
use ancre_passes::onnx;
use ancre_passes::target::CPU_BLOCKS;
use ancre_passes::transform::block_convolutions::block_convolutions;

impl OrtEngine {
    /// The session of a graph in blocks; `None` where the engine has no blocks, the graph nothing to lay out, or ONNX Runtime refuses it.
    pub(super) fn open_in_blocks(&self, g: &Graph) -> Option<OrtSession> {
        if !self.blocks || self.device != Device::Cpu {
            return None;
        }
        // External data lie beside the model's own file.
        if !g.nodes().any(|n| g.is_op(n, "Conv")) || !onnx::external_files(g).is_empty() {
            return None;
        }
        let mut g = g.clone();
        resolve_types(&mut g, None);
        if block_convolutions(&mut g, &CPU_BLOCKS).ok()? == 0 {
            return None;
        }
        let bytes = onnx::emit(&g).and_then(|e| e.to_bytes()).ok()?;
        let is_small = bytes.len() as u64 <= REOPENED;
        let place = tempfile::tempdir().ok()?;
        let file = place.path().join("blocks.onnx");
        std::fs::write(&file, bytes).ok()?;
        self.open_optimised(&file, is_small).ok().map(|session| OrtSession { in_blocks: true, ..session })
    }
}

// Other processors' builds have no such operators.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests {
    use super::*;
    use crate::engine::ort::environment;
    use crate::engine::{Session, Tensors};
    use crate::io::tensor::NpTensor;
    use ancre_passes::text::parse;

    /// Every type but the inputs' is open, as in a file.
    #[test]
    fn a_graph_in_blocks_computes_the_same() {
        if environment().is_err() {
            eprintln!("skipped: no ONNX Runtime");
            return;
        }
        let text = "g (float[n, 16, 6, 5] x, float[16, 16, 3, 3] w) => (y) {
            v = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu (v) }";
        let g = parse(text).unwrap();
        let engine = OrtEngine { blocks: true, ..OrtEngine::default() };
        let mut blocks = engine.open_in_blocks(&g).expect("there is a convolution to lay out");
        let mut plain = OrtEngine::default().open_graph_safely(&g, None).unwrap();
        let cells = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let tensor = |shape: &[usize]| NpTensor::f32s(shape, &cells(shape.iter().product())).unwrap();
        let feeds = Tensors::from([("x".to_string(), tensor(&[2, 16, 6, 5])), ("w".to_string(), tensor(&[16, 16, 3, 3]))]);
        let [got, want] = [&mut blocks, &mut plain].map(|s| s.run(&feeds).unwrap()["y"].to_f64());
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?} {want:?}");
        assert!(OrtEngine::default().open_in_blocks(&g).is_none());
        assert!(engine.open_in_blocks(&parse("g (float[2] x) => (y) { y = Relu (x) }").unwrap()).is_none());
    }
}

//! Machines that graphs are written for: the numbers by which one formulation of a computation is preferred to another. They change
//! which operators are emitted, never what the graph computes.
//!
//! `cargo bench --bench costs` measures the CPU's numbers again, each in the benchmark that its field names. The numbers of [`CUDA`]
//! and [`WASM`] have not been measured. They follow from how those machines work, as the comments say.

/// The costs of one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// A cotangent is summed over leading axes by a product with a row of ones from this many columns on, below by `ReduceSum`.
    /// Benchmark `row_sum`.
    pub ones_columns: i64,
    /// The same for the sum over a batch of matrix products. Benchmark `row_sum`, with 16 and 64 rows.
    pub ones_products: i64,
    /// A batch of products [M, P] · [P, K] is gathered into one long product once so many times M · K exceeds P · (M + K). The batch
    /// writes M · K numbers for each sample, the long product moves P · (M + K). Benchmark `batch_product`.
    pub long_product: i64,
    /// A convolution's input gradient is a `Conv` with the reversed weight where the weight has at most so many times the elements
    /// of the activations at its two sides, else a `ConvTranspose`; 0: only that. Benchmark `conv_input`.
    pub reversed_weight: i64,
    /// A convolution computes on channels in blocks, ONNX Runtime's own layout, where its weight has at most so many times the elements
    /// of the activations at its two sides; 0: never. Benchmark `conv_blocks`.
    pub blocked_weight: i64,
    /// The batch that is assumed where it is symbolic and the source tells none.
    pub batch: i64,
    /// The formulations of a convolution's weight gradient.
    pub conv_weight: ConvWeight,
    /// The formulations of a router.
    pub router: Router,
    /// Trained tensors of up to so many elements are updated end to end. Benchmark `small_updates`.
    pub small_update: i64,
    /// Does it compute in float64?
    pub float64: bool,
}

/// How the gradient of a convolution's weight is computed. Benchmark `conv_weight`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConvWeight {
    /// With fewer input channels windows are always laid out as columns, if the target has those.
    pub few_channels: i64,
    /// Groups of single channels with more taps than this, or strided, are one convolution, the others products of slices.
    pub depthwise_taps: i64,
    /// Those at stride 1 that need up to so many shifted copies of the operands are products of those instead.
    pub depthwise_copies: i64,
    /// Strided windows with more taps than this are one convolution, the others products of slices.
    pub strided_taps: i64,
    /// Windows at stride 1 that need more shifted copies of the operands than this are one convolution.
    pub shifted_copies: i64,
    /// As long as writing a product's result for so many samples takes transposing it once, which laying the windows out as columns
    /// saves; strided windows always are. 0: never.
    pub transposed_samples: i64,
}

/// How a router's sums are computed. Benchmark `lowering` of `pipeline`.
#[derive(Clone, Debug, PartialEq)]
pub struct Router {
    /// Up to so many sources take a product and a sum a pair.
    pub pairs: usize,
    /// Above that: blocks of the second number of sources, for up to the first number of them. The last entry holds for all.
    pub blocks: &'static [(usize, usize)],
    /// Inside a block: how many sources are stacked once for all rows, which takes more operators and moves less; `None`: every row
    /// stacks what it reads.
    pub chunk: Option<usize>,
    /// From so many elements of a sample on, inner products of cotangents and states are taken sample by sample.
    pub large_sample: i64,
}

/// ONNX Runtime's CPU provider, measured on two cores.
pub static CPU: Target = CPU_COSTS;

/// ONNX Runtime's CPU provider on x86-64, whose convolutions on channels in blocks are operators of its own. Measured with AVX-512.
pub static CPU_BLOCKS: Target = Target {
    name: "cpu-blocks",
    // Laying a weight of 512 x 512 x 3 x 3 out costs more than blocks save for images of 7 x 7 at batch 4 (ratio 12: 1.0 to 1.1 of
    // the time), and less at batch 32 (ratio 1.5: 0.6 to 0.8).
    blocked_weight: 2,
    ..CPU_COSTS
};

/// What [`CPU_BLOCKS`] shares with [`CPU`].
const CPU_COSTS: Target = Target {
    name: "cpu",
    // `ReduceSum` over rows is several times slower where the rows are long.
    ones_columns: 64,
    // Below two thousand elements the two ways differ by ten microseconds, at 36 thousand by a factor of two to ten.
    ones_products: 2048,
    long_product: 2,
    // The reversed copy costs more than the transposed convolution's serial scatter once the weight has some twice the activations'
    // elements (256 channels of 14 x 14 at batch 4: 5.0 against 5.7 ms, 512 of 7 x 7: 7.6 against 7.8).
    reversed_weight: 2,
    blocked_weight: 0,
    batch: 8,
    // A convolution with batch and channels exchanged takes twice as long as the products of shifted copies for 3 x 3 taps, half
    // as much again for 7 x 7, the same from 8 x 8 or 16 in a row on; channel by channel twice as long for both. Against strided
    // slices it wins from some 16 taps on (7 x 7 over 3 channels: 0.6 to 0.8 of their time). Narrow products (few channels) waste
    // the matrix kernel. Columns move nine copies of x for 3 x 3 taps where shifts move six of x and y, but what the product gives
    // is smaller and needs no transposing, which decides for small images of many channels (512 channels of 7 x 7: a third of the
    // time).
    conv_weight: ConvWeight {
        few_channels: 8,
        depthwise_taps: 8,
        depthwise_copies: 15,
        strided_taps: 16,
        shifted_copies: 15,
        transposed_samples: 8,
    },
    // Over states of 8 k to 780 k floats, K = 5 … 64, blocks of 16 with chunks of 4 are best or within a tenth of it: 0.6 to 0.9 of the
    // time of blocks of 8 without chunks. Up to 4 states there is nothing to stack.
    router: Router { pairs: 4, blocks: &[(usize::MAX, 16)], chunk: Some(4), large_sample: 4096 },
    // Joining and splitting moves nine copies of a tensor, which the operators saved (about four microseconds each) outweigh up
    // to some ten thousand elements.
    small_update: 4096,
    float64: true,
};

/// ONNX Runtime's CUDA provider. Not measured: a kernel's launch costs some five microseconds and memory moves a terabyte a second,
/// so a few kernels over large arrays are preferred to many over small ones. The formulations stay within the operators that have
/// kernels there, and sums stay out of matrix products, which may be rounded to ten bits (TF32).
pub static CUDA: Target = CUDA_COSTS;

/// What [`WEBGPU`] shares with [`CUDA`].
const CUDA_COSTS: Target = Target {
    name: "cuda",
    // `ReduceSum` is one kernel at the memory's speed, and exact.
    ones_columns: i64::MAX,
    ones_products: i64::MAX,
    // Both ways are bound by memory and read what they write, so the way that moves fewer numbers wins.
    long_product: 1,
    // cuDNN's data gradient is one kernel; the reversed weight would be two copies before another.
    reversed_weight: 0,
    blocked_weight: 0,
    batch: 32,
    // Slices for each tap are avoided where they can be: dense windows are one product of shifted copies, groups of single channels
    // are one grouped convolution.
    conv_weight: ConvWeight {
        few_channels: 0,
        depthwise_taps: 0,
        depthwise_copies: 0,
        strided_taps: 9,
        shifted_copies: 15,
        transposed_samples: 0,
    },
    // Pairs are two kernels each, K² of them; a block's product is one. Blocks of about √K move the least.
    router: Router { pairs: 2, blocks: &[(usize::MAX, 8)], chunk: None, large_sample: i64::MAX },
    // Nine copies of 65 thousand numbers take five microseconds, a dozen kernels some fifty.
    small_update: 1 << 16,
    float64: true,
};

/// ONNX Runtime's WebAssembly build on one thread. Not measured: it has the CPU provider's kernels, so a kernel that is faster there is
/// faster here. Sharing work among threads does not help, and a node costs about twice as much.
pub static WASM: Target = Target {
    name: "wasm",
    // Three nodes against one, where the one is a slow kernel.
    ones_columns: 2048,
    ones_products: 2048,
    long_product: 2,
    // The scatter of a transposed convolution is serial everywhere, so one thread loses less by it.
    reversed_weight: 1,
    blocked_weight: 0,
    batch: 1,
    conv_weight: ConvWeight {
        few_channels: 8,
        depthwise_taps: 0,
        depthwise_copies: 15,
        strided_taps: 16,
        shifted_copies: 15,
        transposed_samples: 8,
    },
    router: Router { pairs: 2, blocks: &[(usize::MAX, 16)], chunk: None, large_sample: i64::MAX },
    small_update: 8192,
    float64: true,
};

/// ONNX Runtime's WebGPU provider in a browser. Its builds of 1.30 have no float64 at all, on their CPU side neither, and a `Split` of
/// more than nine results passes the number of buffers that a shader may have. Its costs have not been measured; they are taken to be
/// [`CUDA`]'s.
pub static WEBGPU: Target = Target {
    name: "webgpu",
    batch: 8,
    router: Router { pairs: 2, blocks: &[(usize::MAX, 4)], chunk: None, large_sample: i64::MAX },
    small_update: 0,
    float64: false,
    ..CUDA_COSTS
};

impl Target {
    /// The names of all targets.
    pub const NAMES: [&str; 5] = ["cpu", "cpu-blocks", "cuda", "wasm", "webgpu"];

    /// The target of a name.
    pub fn of_name(name: &str) -> Option<&'static Target> {
        [&CPU, &CPU_BLOCKS, &CUDA, &WASM, &WEBGPU].into_iter().find(|t| t.name == name)
    }
}

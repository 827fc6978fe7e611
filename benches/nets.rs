//! Residual networks of any depth, built through the IR.

use ancre_passes::ir::{Attrs, DType, Dim, Graph, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::{BuildError, Builder};

const WIDTH: i64 = 8;
const CLASSES: i64 = 4;

/// A network under construction: a builder, and a source of weights of which no two are equal.
struct Net<'g> {
    b: Builder<'g>,
    seed: u64,
}

impl Net<'_> {
    fn weight(&mut self, name: &str, dims: &[i64]) -> ValueId {
        let values: Vec<f32> = (0..dims.iter().product::<i64>())
            .map(|_| {
                self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (self.seed >> 40) as f32 / 16777216.0 - 0.5
            })
            .collect();
        self.b.graph.add_initializer(name, Tensor::f32s(dims, &values), false)
    }

    fn linear(&mut self, name: &str, x: ValueId, out: i64) -> Result<ValueId, BuildError> {
        let w = self.weight(&format!("{name}.weight"), &[WIDTH, out]);
        let bias = self.weight(&format!("{name}.bias"), &[out]);
        let y = self.b.matmul(x, w)?;
        self.b.add(y, bias)
    }

    fn norm(&mut self, name: &str, x: ValueId) -> Result<ValueId, BuildError> {
        let scale = self.weight(&format!("{name}.scale"), &[WIDTH]);
        let bias = self.weight(&format!("{name}.bias"), &[WIDTH]);
        self.b.op("LayerNormalization", &[x, scale, bias])
    }

    fn mlp_block(&mut self, i: usize, h: ValueId) -> Result<ValueId, BuildError> {
        let up = self.linear(&format!("{i}.up"), h, WIDTH)?;
        let act = self.b.op("Relu", &[up])?;
        self.linear(&format!("{i}.down"), act, WIDTH)
    }

    fn attention_block(&mut self, i: usize, h: ValueId) -> Result<ValueId, BuildError> {
        let q = self.linear(&format!("{i}.q"), h, WIDTH)?;
        let k = self.linear(&format!("{i}.k"), h, WIDTH)?;
        let v = self.linear(&format!("{i}.v"), h, WIDTH)?;
        let k = self.b.transpose(k, &[0, 2, 1])?;
        let scores = self.b.matmul(q, k)?;
        let p = self.b.op_with("Softmax", Attrs::new().with("axis", -1), &[scores])?;
        let y = self.b.matmul(p, v)?;
        self.linear(&format!("{i}.o"), y, WIDTH)
    }
}

fn build(
    dims: &[Dim],
    depth: usize,
    block: impl Fn(&mut Net, usize, ValueId) -> Result<ValueId, BuildError>,
) -> Result<Graph, BuildError> {
    let mut g = Graph::default();
    let x = g.add_input("x", TensorType::new(DType::F32, dims).into(), None);
    let mut net = Net { b: Builder::new(&mut g, ""), seed: 1 };
    let mut h = x;
    for i in 0..depth {
        net.b.prefix = format!("block/{i}");
        let branch = block(&mut net, i, h)?;
        h = net.b.add(h, branch)?;
    }
    net.b.prefix = "head".into();
    let y = net.linear("head", h, CLASSES)?;
    g.add_output(y, None);
    Ok(g)
}

/// `h + W₂ relu(W₁ h)`, so many times.
///
/// # Errors
/// None, unless the operators' rules are at fault.
pub fn residual_mlp(depth: usize) -> Result<Graph, BuildError> {
    build(&[Dim::symbol("batch"), Dim::from(WIDTH)], depth, |n, i, h| n.mlp_block(i, h))
}

/// A pre-LN transformer's blocks, attention and MLP in turn, so many together.
///
/// # Errors
/// None, unless the operators' rules are at fault.
pub fn pre_ln(depth: usize) -> Result<Graph, BuildError> {
    build(&[Dim::symbol("batch"), Dim::from(4), Dim::from(WIDTH)], depth, |n, i, h| {
        let x = n.norm(&format!("{i}.ln"), h)?;
        if i % 2 == 0 { n.attention_block(i, x) } else { n.mlp_block(i, x) }
    })
}

/// Blocks that cost little more than a copy, `h + pool(h)` with a window of one, over states of the given extents: what takes
/// time in it is the router.
///
/// # Errors
/// None, unless the operators' rules are at fault.
pub fn pooled_chain(depth: usize, dims: [i64; 4]) -> Result<Graph, BuildError> {
    let mut g = Graph::default();
    let mut h = g.add_input("x", TensorType::fixed(DType::F32, &dims).into(), None);
    let mut b = Builder::new(&mut g, "");
    for i in 0..depth {
        b.prefix = format!("block/{i}");
        let branch = b.op_with("AveragePool", Attrs::new().with("kernel_shape", vec![1, 1]), &[h])?;
        h = b.add(h, branch)?;
    }
    g.add_output(h, None);
    Ok(g)
}

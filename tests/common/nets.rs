//! Small random residual networks.

use super::Random;
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::Builder;

/// What a network looks like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Blocks of each chain; a projection lies between two chains.
    pub chains: Vec<usize>,
    pub width: i64,
    /// A sequence axis between batch and features.
    pub sequence: bool,
    /// Layer normalisation at the start of each branch.
    pub normed: bool,
    /// Relu after each add.
    pub post: bool,
    /// A factor on each skip.
    pub scaled: bool,
    /// Linear layers in a branch.
    pub depth: usize,
    /// No activation has a kink.
    pub smooth: bool,
}

impl Plan {
    pub fn of(blocks: usize) -> Plan {
        Plan {
            chains: vec![blocks],
            width: 6,
            sequence: false,
            normed: false,
            post: false,
            scaled: false,
            depth: 2,
            smooth: false,
        }
    }

    pub fn random(r: &mut Random) -> Plan {
        Plan {
            chains: (0..1 + r.below(2)).map(|_| 1 + r.below(5)).collect(),
            width: 3 + r.below(5) as i64,
            sequence: r.below(2) == 0,
            normed: r.below(2) == 0,
            post: r.below(3) == 0,
            scaled: r.below(4) == 0,
            depth: 1 + r.below(2),
            smooth: false,
        }
    }
}

struct Net<'g> {
    b: Builder<'g>,
    random: Random,
    smooth: bool,
}

impl Net<'_> {
    fn parameter(&mut self, name: &str, dims: &[i64], spread: f64, centre: f64) -> ValueId {
        let count = dims.iter().product::<i64>() as usize;
        let values: Vec<f64> = self.random.normals(count).into_iter().map(|v| centre + spread * v).collect();
        self.b.graph.add_initializer(name, Tensor::floats(DType::F32, dims, &values), false)
    }

    fn linear(&mut self, x: ValueId, from: i64, to: i64, name: &str) -> ValueId {
        let w = self.parameter(&format!("{name}.weight"), &[from, to], 1.0 / (from as f64).sqrt(), 0.0);
        let bias = self.parameter(&format!("{name}.bias"), &[to], 0.1, 0.0);
        let product = self.b.matmul(x, w).unwrap();
        self.b.add(product, bias).unwrap()
    }

    fn activation(&mut self, x: ValueId) -> ValueId {
        let which = ["Tanh", "Sigmoid", "Softplus", "Relu"][self.random.below(if self.smooth { 3 } else { 4 })];
        self.b.op(which, &[x]).unwrap()
    }

    fn branch(&mut self, h: ValueId, plan: &Plan, width: i64, name: &str) -> ValueId {
        let mut v = h;
        if plan.normed {
            let scale = self.parameter(&format!("{name}.norm.scale"), &[width], 0.1, 1.0);
            let bias = self.parameter(&format!("{name}.norm.bias"), &[width], 0.1, 0.0);
            let op = Op::new("LayerNormalization", Attrs::new().with("axis", -1));
            v = self.b.node(op, &[Some(v), Some(scale), Some(bias)]).unwrap()[0];
        }
        for layer in 0..plan.depth {
            v = self.linear(v, width, width, &format!("{name}.{layer}"));
            if layer + 1 < plan.depth || plan.depth == 1 {
                v = self.activation(v);
            }
        }
        v
    }

    fn join(&mut self, skip: ValueId, branch: ValueId, plan: &Plan) -> ValueId {
        // The skip may be either operand.
        let (a, b) = if self.random.below(2) == 0 { (skip, branch) } else { (branch, skip) };
        let sum = self.b.add(a, b).unwrap();
        if plan.post { self.b.op("Relu", &[sum]).unwrap() } else { sum }
    }
}

/// A network of a plan: stem, chains of residual blocks, head with five outputs. Input `x`, output `y`.
pub fn network(plan: &Plan, seed: u64) -> Graph {
    let mut g = Graph::default();
    g.opsets.insert(String::new(), 18);
    let mut dims = vec![Dim::symbol("batch")];
    if plan.sequence {
        dims.push(Dim::from(3));
    }
    dims.push(Dim::from(4));
    let x = g.add_input("x", TensorType::new(DType::F32, dims).into(), None);
    let mut n = Net { b: Builder::new(&mut g, "stem"), random: Random(seed), smooth: plan.smooth };
    let mut width = plan.width;
    let mut h = n.linear(x, 4, width, "stem");
    for (c, blocks) in plan.chains.iter().enumerate() {
        if c > 0 {
            let name = format!("chain{c}.projection");
            n.b.prefix = name.clone();
            let wider = width + 2;
            let skip = n.linear(h, width, wider, &name);
            let inner = n.linear(h, width, wider, &format!("{name}.branch.0"));
            let inner = n.activation(inner);
            let branch = n.linear(inner, wider, wider, &format!("{name}.branch.1"));
            h = n.join(skip, branch, plan);
            width = wider;
        }
        for k in 0..*blocks {
            let name = format!("chain{c}.block{k}");
            n.b.prefix = name.clone();
            let branch = n.branch(h, plan, width, &name);
            let skip = if plan.scaled { n.b.scale(h, 0.75).unwrap() } else { h };
            h = n.join(skip, branch, plan);
        }
    }
    n.b.prefix = "head".into();
    let y = n.linear(h, width, 5, "head");
    g.rename(y, "y");
    g.add_output(y, None);
    g
}

//! How much memory a comparison takes, before it runs.

use crate::engine::memory::{Watch, bytes};
use crate::engine::random_inputs::Sizes;
use crate::error::Failure;
use ancre_passes::ir::{Graph, Kind, ValueId};

/// Bytes of a model's constants.
pub(super) fn weights(g: &Graph) -> u64 {
    let constant = |n: ancre_passes::ir::NodeId| match &g.node(n).kind {
        Kind::Initializer { tensor, .. } => (tensor.len() * tensor.dtype().size().unwrap_or(1)) as u64,
        _ => 0,
    };
    g.nodes().map(constant).sum()
}

/// Bytes of a value with these extents; `None` where its type is not known.
pub(super) fn value_bytes(g: &Graph, v: ValueId, sizes: &Sizes) -> Option<u64> {
    let ty = g.tensor_type(v)?;
    let count = ty.shape.iter().try_fold(1u64, |n, d| {
        let d = u64::try_from(d.eval(&|s| sizes.get(s).copied())?).ok()?;
        n.checked_mul(d)
    })?;
    count.checked_mul(ty.dtype.size()? as u64)
}

/// Most bytes of results that are alive at once when the nodes run in file order.
pub(super) fn peak_activations(g: &Graph, sizes: &Sizes) -> u64 {
    let order = g.topological_order();
    let mut last_use = vec![0usize; g.node_bound()];
    for (i, n) in order.iter().enumerate() {
        g.reads(*n).for_each(|v| last_use[v.node.index()] = i);
    }
    for o in g.outputs() {
        last_use[o.value.node.index()] = order.len();
    }
    let size = |n| g.results(n).filter_map(|v| value_bytes(g, v, sizes)).sum::<u64>();
    let mut dying: Vec<Vec<u64>> = vec![Vec::new(); order.len() + 1];
    let (mut alive, mut peak) = (0u64, 0u64);
    for (i, n) in order.iter().enumerate() {
        if !matches!(g.node(*n).kind, Kind::Initializer { .. }) {
            let bytes = size(*n);
            alive = alive.saturating_add(bytes);
            dying[last_use[n.index()].max(i)].push(bytes);
        }
        peak = peak.max(alive);
        alive -= dying[i].drain(..).sum::<u64>().min(alive);
    }
    peak
}

/// What running a model takes: its file, an engine's copies of its weights, its activations.
///
/// An engine holds the message it was given, the constants made of it and those it packed for its kernels; activations exist
/// beside the copies that reordering and padding make.
pub(super) fn estimate(g: &Graph, sizes: &Sizes) -> u64 {
    const BASE: u64 = 60 << 20;
    BASE + 4 * weights(g) + 2 * peak_activations(g, sizes)
}

/// Ends this process with a message and status 2 when it goes past the limit. Before that the failure is handed over.
pub(super) fn watch(limit: u64, over: impl Fn(Failure) -> Failure + Send + 'static) -> Watch {
    Watch::start(limit, move |used, limit| {
        let failure = over(exceeded("the check uses", used, limit));
        eprintln!("error: {failure}");
        std::process::exit(failure.status.into());
    })
}

/// The error of a check that does not fit.
pub(super) fn exceeded(what: &str, needed: u64, limit: u64) -> Failure {
    let (needed, limit) = (bytes(needed), bytes(limit));
    Failure::input(format!("{what} {needed} of memory, --max-memory allows {limit}")).help(
        "a larger --max-memory, a smaller extent by --dim NAME=N where one is symbolic, or --proof, which runs nothing",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::ir::{Attrs, DType, Dim, Op, TensorType};

    #[test]
    fn the_peak_counts_what_is_alive() {
        // x -> a -> b -> y, each 4·n bytes: two are alive at once.
        let mut g = Graph::default();
        let ty = TensorType::new(DType::F32, [Dim::symbol("n")]);
        let mut v = g.add_input("x", ty.clone().into(), None);
        for name in ["a", "b", "y"] {
            let n = g.add_op("", Op::new("Relu", Attrs::new()), &[Some(v)]);
            v = g.push_result(n, name, ty.clone().into());
        }
        g.add_output(v, None);
        assert_eq!(peak_activations(&g, &Sizes::from([("n".to_string(), 10)])), 80);
    }
}

//! How much memory a comparison takes, before and while it runs.

use crate::engine::random_inputs::Sizes;
use crate::error::Failure;
use ancre_passes::ir::{Graph, Kind, ValueId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Reads a size such as `500M`, `8G`, `2GiB` or a number of bytes.
///
/// # Errors
/// When it is none.
pub fn parse_size(text: &str) -> Result<u64, Failure> {
    let fail = || {
        Failure::input(format!("--max-memory `{text}` is no size")).help("a number with k, M, G or T, such as 500M or 8G")
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| fail())?;
    let unit = text[digits..].trim().to_ascii_lowercase();
    let (letter, rest) = unit.split_at(unit.len().min(1));
    let power = match letter {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(fail()),
    };
    let base: f64 = match rest {
        "" | "b" => 1000.0,
        "i" | "ib" => 1024.0,
        _ => return Err(fail()),
    };
    let bytes = number * base.powi(power);
    if bytes >= 1.0 { Ok(bytes as u64) } else { Err(fail()) }
}

/// Bytes of a model's constants.
pub fn weights(g: &Graph) -> u64 {
    let constant = |n: ancre_passes::ir::NodeId| match &g.node(n).kind {
        Kind::Initializer { tensor, .. } => (tensor.len() * tensor.dtype().size().unwrap_or(1)) as u64,
        _ => 0,
    };
    g.nodes().map(constant).sum()
}

/// Bytes of a value with these extents; `None` where its type is not known.
pub fn value_bytes(g: &Graph, v: ValueId, sizes: &Sizes) -> Option<u64> {
    let ty = g.tensor_type(v)?;
    let count = ty.shape.iter().try_fold(1u64, |n, d| {
        let d = u64::try_from(d.eval(&|s| sizes.get(s).copied())?).ok()?;
        n.checked_mul(d)
    })?;
    count.checked_mul(ty.dtype.size()? as u64)
}

/// Most bytes of results that are alive at once when the nodes run in file order.
pub fn peak_activations(g: &Graph, sizes: &Sizes) -> u64 {
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
pub fn estimate(g: &Graph, sizes: &Sizes) -> u64 {
    const BASE: u64 = 60 << 20;
    BASE + 4 * weights(g) + 2 * peak_activations(g, sizes)
}

/// Watches this process's own memory and ends it, with a message, when it goes past a limit: the system would end it without.
pub struct Watch {
    done: Arc<AtomicBool>,
}

impl Watch {
    /// Starts watching.
    pub fn new(limit: u64) -> Watch {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                if let Some(used) = resident().filter(|used| *used > limit) {
                    eprintln!("error: {}", exceeded("the check uses", used, limit));
                    std::process::exit(2);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Watch { done }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// The error of a check that does not fit.
pub fn exceeded(what: &str, needed: u64, limit: u64) -> Failure {
    let (needed, limit) = (crate::rewrite::report::bytes(needed), crate::rewrite::report::bytes(limit));
    Failure::input(format!("{what} {needed} of memory, --max-memory allows {limit}"))
        .help("a smaller --dim (batch, sequence length), --engine ort, --proof, or a larger --max-memory")
}

/// Bytes of memory of this process that belong to no file.
pub fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some(1024 * (field("RssAnon:")? + field("RssShmem:").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::ir::{Attrs, DType, Dim, Op, TensorType};

    #[test]
    fn sizes_are_read_with_their_units() {
        let sizes = ["1000", "2k", "1.5M", "8G", "1KiB", "3gb"].map(|t| parse_size(t).unwrap());
        assert_eq!(sizes, [1000, 2000, 1_500_000, 8_000_000_000, 1024, 3_000_000_000]);
        for bad in ["", "x", "-1", "8Q", "0", "5Mx"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

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

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory() {
        assert!(resident().unwrap() > 100_000);
    }
}

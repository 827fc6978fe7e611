//! Memory: sizes as people write them, and what this process uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Reads a size such as `500M`, `8G`, `2GiB` or a number of bytes.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let fail = || {
        "no size: a number of bytes, or one with k, M, G, T (thousands) or KiB, MiB, GiB, TiB, such as 500M, was expected"
            .to_string()
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

/// `12.3 MB` and the like.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.0} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// Watches this process's own memory. When the machine runs out of memory, the system ends a process without a message.
pub struct Watch {
    done: Arc<AtomicBool>,
    limit: Arc<AtomicU64>,
}

impl Watch {
    /// Starts to watch. When the process uses more than the limit, `over` is called with the bytes used and the limit.
    pub fn start(limit: u64, over: impl Fn(u64, u64) + Send + 'static) -> Watch {
        let (done, limit) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(limit)));
        let (seen, most) = (done.clone(), limit.clone());
        std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                let most = most.load(Ordering::Relaxed);
                if let Some(used) = resident().filter(|used| *used > most) {
                    over(used, most);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Watch { done, limit }
    }

    /// Sets another limit.
    pub fn allow(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Bytes of memory of this process that belong to no file.
pub fn resident() -> Option<u64> {
    Some(field("RssAnon:")? + field("RssShmem:").unwrap_or(0))
}

/// The most bytes of memory that this process has had at once, files that it maps included (Linux: `VmHWM`).
pub fn peak() -> Option<u64> {
    field("VmHWM:")
}

/// Bytes that the system tells of this process under a name.
fn field(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(name))?;
    Some(1024 * line.split_whitespace().nth(1)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        let sizes = ["1000", "2k", "1.5M", "8G", "1KiB", "3gb"].map(|t| parse_size(t).unwrap());
        assert_eq!(sizes, [1000, 2000, 1_500_000, 8_000_000_000, 1024, 3_000_000_000]);
        for bad in ["", "x", "-1", "8Q", "0", "5Mx"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory() {
        assert!(resident().unwrap() > 100_000);
        assert!(peak().unwrap() >= resident().unwrap());
    }
}

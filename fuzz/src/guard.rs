//! Limits on a case, and what is known of it when it ends badly.
#![allow(unsafe_code)] // An allocator is unsafe by its trait.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Memory that a case may hold: its file has some kilobytes.
pub const MOST_MEMORY: usize = 256 << 20;
/// Processor time that a case may take.
pub const LONGEST: Duration = Duration::from_secs(10);

/// An allocator that counts, and refuses what passes the limit. A refused allocation ends the process, as in a machine that is full.
pub struct Counting;

// Cases run on one thread, which counts for itself: a shared counter would take a tenth of the time.
thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
    static REFUSING: Cell<bool> = const { Cell::new(false) };
}

#[inline]
fn holds(change: impl FnOnce(usize) -> usize) -> usize {
    let held = change(HELD.get());
    HELD.set(held);
    held
}

#[inline]
fn refuses(size: usize) -> bool {
    if holds(|h| h.wrapping_add(size)) <= LIMIT.get() { false } else { passes_the_limit(size) }
}

#[cold]
fn passes_the_limit(size: usize) -> bool {
    if REFUSING.replace(true) {
        return false;
    }
    holds(|h| h.wrapping_sub(size));
    eprintln!("out of memory: {size} bytes at\n{}", Backtrace::force_capture());
    true
}

// SAFETY: memory is the system allocator's, layouts are passed on as they come.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if refuses(size) {
            return std::ptr::null_mut();
        }
        holds(|h| h.wrapping_sub(layout.size()));
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        holds(|h| h.wrapping_sub(layout.size()));
        unsafe { System.dealloc(memory, layout) }
    }
}

/// From now on a case may hold this much more than is held now.
fn limit_memory() {
    LIMIT.set(HELD.get().saturating_add(MOST_MEMORY));
}

/// The case under way, as a number that grows; odd while none is.
static BEAT: AtomicU64 = AtomicU64::new(1);

/// Ends the process, with a word on stderr, when a case takes too long.
pub fn watch() {
    std::thread::spawn(|| {
        let mut since = (BEAT.load(Relaxed), spent());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let beat = BEAT.load(Relaxed);
            if beat % 2 == 1 || beat != since.0 {
                since = (beat, spent());
            } else if spent().saturating_sub(since.1) > LONGEST {
                eprintln!("no end after {} s", LONGEST.as_secs());
                std::process::abort();
            }
        }
    });
}

/// Processor time of this process, which a busy machine does not stretch; elsewhere than on Linux, time.
fn spent() -> Duration {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let ticks = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| {
        // User and system time are the 14th and 15th word, in ticks of 10 ms; the second is a name in parentheses.
        let words: Vec<u64> = text.rsplit_once(')')?.1.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
        Some(words.iter().sum())
    });
    ticks.map_or_else(|| BEGIN.get_or_init(Instant::now).elapsed(), |t: u64| Duration::from_millis(10 * t))
}

thread_local! {
    static PANIC: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Panics are noted, not printed.
pub fn note_panics() {
    std::panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or("a panic without a text").to_string();
        let at = info.location().map_or_else(String::new, |l| format!("{}:{}", l.file(), l.line()));
        PANIC.with(|p| *p.borrow_mut() = Some((place(&at, &Backtrace::force_capture().to_string()), what)));
    }));
}

/// Where a panic is: the first places of ours on the way to it. What only hands a value out is told apart by who asks.
fn place(at: &str, trace: &str) -> String {
    let crates = ["passes/src/", "fuzz/src/"];
    let within = |l| crates.iter().find_map(|c| Some(&l[str::find(l, c)?..]));
    let at = within(at).unwrap_or(at);
    let ours = trace.lines().filter_map(|l| within(l.trim().strip_prefix("at ")?));
    let ours = ours.filter(|l| !["src/guard.rs", "ir/graph/read.rs"].iter().any(|f| l.contains(f)));
    let mut ours: Vec<&str> = ours.map(|l| l.rsplit_once(':').map_or(l, |(line, _)| line)).collect();
    ours.dedup();
    ours.truncate(2);
    match ours.as_slice() {
        [] => at.to_string(),
        [first, ..] if *first == at => at.to_string(),
        some => some.join(" from "),
    }
}

/// Runs something; a panic is its place and its text.
///
/// # Errors
/// When it panics.
pub fn caught<T>(run: impl FnOnce() -> T) -> Result<T, (String, String)> {
    limit_memory();
    BEAT.fetch_add(1, Relaxed);
    let done = catch_unwind(AssertUnwindSafe(run));
    BEAT.fetch_add(1, Relaxed);
    // What the search itself keeps of its inputs has no limit.
    LIMIT.set(usize::MAX);
    done.map_err(|_| PANIC.with(|p| p.borrow_mut().take()).unwrap_or_default())
}

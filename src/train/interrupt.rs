//! Ctrl-C: the first one asks the run to stop, the second one ends the process.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Exit status of an interrupted run, as shells give it.
pub const STATUS: u8 = 130;

static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Watches for interrupts (and requests to terminate) from now on.
pub fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Where something else handles them already, that decides.
        let _ = ctrlc::try_set_handler(|| {
            if COUNT.fetch_add(1, Ordering::SeqCst) > 0 {
                std::process::exit(i32::from(STATUS));
            }
        });
    });
}

/// Has one come?
pub fn came() -> bool {
    COUNT.load(Ordering::SeqCst) > 0
}

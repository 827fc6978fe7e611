//! Ctrl-C: the first one asks the run to stop, the second one ends the process.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Exit status of an interrupted run, as shells give it.
pub const STATUS: u8 = 130;

static CAME: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Watches for interrupts and requests to terminate from now on. A hang-up is left as it was found: `nohup` has it ignored.
pub fn watch() {
    CAME.get_or_init(|| {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the one that ends the process looks at the flag before this signal sets it. Where a signal cannot be
            // watched it does what it did before, which is to end the process.
            let _ = flag::register_conditional_shutdown(signal, i32::from(STATUS), Arc::clone(&came));
            let _ = flag::register(signal, Arc::clone(&came));
        }
        came
    });
}

/// Has one come?
pub fn came() -> bool {
    CAME.get().is_some_and(|came| came.load(Ordering::SeqCst))
}

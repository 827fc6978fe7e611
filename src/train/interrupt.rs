//! Ctrl-C: the first asks the run to stop, the second ends the process.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Exit status of an interrupted run, as shells give it.
pub const STATUS: u8 = 130;

static CAME: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Watches for interrupts and requests to terminate from now on. A hang-up is not watched: under `nohup` it is ignored.
pub fn watch() {
    CAME.get_or_init(|| {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order counts: the handler that ends the process must see the flag before this signal sets it. A signal that cannot
            // be watched ends the process, as it did before.
            let _ = flag::register_conditional_shutdown(signal, i32::from(STATUS), Arc::clone(&came));
            let _ = flag::register(signal, Arc::clone(&came));
        }
        came
    });
}

/// Has an interrupt come?
pub fn came() -> bool {
    CAME.get().is_some_and(|came| came.load(Ordering::SeqCst))
}

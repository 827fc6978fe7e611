//! Ctrl-C: the first asks the run to stop, the second ends the process.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Exit status of an interrupted run, as shells give it.
pub const STATUS: u8 = 130;

/// Has this process a message of its own to end with?
static ENDING: AtomicBool = AtomicBool::new(false);

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

/// Watches as one of several processes of a run. `mpirun` hands SIGUSR1 on to all of them: they finish the step, write a checkpoint and end.
/// With SIGTERM it ends those that are left when one has died; they wait for that one, so the message and the end do not wait for them.
pub(super) fn watch_as_one_of_many(rank: usize, size: usize) {
    #[cfg(unix)]
    if let Some(came) = CAME.get() {
        let _ = flag::register(signal_hook::consts::SIGUSR1, Arc::clone(came));
    }
    let terminated = Arc::new(AtomicBool::new(false));
    let _ = flag::register(SIGTERM, Arc::clone(&terminated));
    // A thread that cannot be started leaves it to `mpirun` to end this process without a word.
    let _ = std::thread::Builder::new().name("terminate".into()).spawn(move || {
        while !terminated.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
        if ENDING.load(Ordering::SeqCst) {
            return;
        }
        eprintln!(
            "error: rank {rank} of {size}: the run was ended from outside, as mpirun does when another rank has died; the last checkpoint is whole, and --resume goes on from it"
        );
        low_level::exit(i32::from(STATUS));
    });
}

/// This process ends by itself from now on, with a message of its own.
pub(super) fn is_ending() {
    ENDING.store(true, Ordering::SeqCst);
}

/// Has an interrupt come?
pub fn came() -> bool {
    CAME.get().is_some_and(|came| came.load(Ordering::SeqCst))
}

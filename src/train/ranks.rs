//! The processes of a run, which share each batch and keep equal states. A run of one process is the ordinary one.
//!
//! All that ranks say to each other but for large sums is one message of fixed form, [`Ranks::meet`]. A rank that fails anywhere sends
//! it as its last word, whatever the others are about to say: so none waits for a rank that is gone.

use crate::error::Failure;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Numbers of a message that its sender chooses.
pub(super) const NUMBERS: usize = 40;

/// Elements that are summed up at once, 25 MB of them: larger sums gain nothing, smaller ones wait more often.
pub(super) const BUCKET: usize = 25_000_000 / 4;

/// What carries messages between the processes of a run. Sums are the same bits on all of them.
pub(super) trait Transport {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;
    /// Number of all.
    fn size(&self) -> usize;
    /// Number of this process among those of its machine, and of all those.
    fn local(&self) -> (usize, usize);
    /// Replaces the numbers by their sums over all processes, each of which calls it with as many.
    fn sum_f64(&self, numbers: &mut [f64]);
    /// The same.
    fn sum_f32(&self, numbers: &mut [f32]);
}

/// The processes of a run, as one of them sees them.
#[derive(Clone, Default)]
pub(super) struct Ranks {
    others: Option<Rc<dyn Transport>>,
    /// Has a rank said that it failed?
    ended: Rc<Cell<bool>>,
    /// Bytes that this process has given to large sums.
    summed: Rc<Cell<u64>>,
    /// Time for messages and sums, waiting for other ranks included.
    spent: Rc<Cell<Duration>>,
}

impl Ranks {
    /// The ranks that the command was started for: those of `mpirun`, or this process alone.
    ///
    /// # Errors
    /// When this build knows no MPI and was started by one, or the MPI cannot be used.
    pub(super) fn of_this_process() -> Result<Ranks, Failure> {
        let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
        // Open MPI, MPICH and its kin, and Slurm's `srun --mpi=pmi2` or `pmix`.
        let started_for = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].into_iter().find_map(number);
        let by_launcher = started_for.is_some() || std::env::var_os("PMIX_RANK").is_some();
        if !by_launcher {
            return Ok(Ranks::default());
        }
        #[cfg(feature = "mpi")]
        {
            let transport = super::mpi::Mpi::start()?;
            Ok(if transport.size() > 1 { Ranks::over(Rc::new(transport)) } else { Ranks::default() })
        }
        #[cfg(not(feature = "mpi"))]
        match started_for {
            Some(0 | 1) => Ok(Ranks::default()),
            _ => Err(Failure::input("was started by mpirun for several processes, and this build knows no MPI")
                .help("build with the feature: cargo install --path . --features mpi (docs/distributed.md)")),
        }
    }

    #[cfg(any(feature = "mpi", test))]
    pub(super) fn over(transport: Rc<dyn Transport>) -> Ranks {
        Ranks { others: Some(transport), ..Ranks::default() }
    }

    pub(super) fn rank(&self) -> usize {
        self.others.as_ref().map_or(0, |t| t.rank())
    }

    pub(super) fn size(&self) -> usize {
        self.others.as_ref().map_or(1, |t| t.size())
    }

    /// Number among the ranks of this machine, and of all those.
    pub(super) fn local(&self) -> (usize, usize) {
        self.others.as_ref().map_or((0, 1), |t| t.local())
    }

    /// Does this rank write, validate and report?
    pub(super) fn is_first(&self) -> bool {
        self.rank() == 0
    }

    pub(super) fn is_alone(&self) -> bool {
        self.others.is_none()
    }

    /// Bytes that this process has given to large sums so far.
    pub(super) fn summed(&self) -> u64 {
        self.summed.get()
    }

    /// Time for messages and sums so far, waiting for other ranks included.
    pub(super) fn spent(&self) -> Duration {
        self.spent.get()
    }

    /// Which rows of a batch of so many are this rank's: as equal a part as can be.
    pub(super) fn share(&self, rows: usize) -> Range<usize> {
        share(rows, self.rank(), self.size())
    }

    /// The same as a function of its own.
    pub(super) fn part(&self) -> impl Fn(usize) -> Range<usize> + Send + 'static {
        let (rank, size) = (self.rank(), self.size());
        move |rows| share(rows, rank, size)
    }

    /// Sums of numbers over all ranks, once all have come here.
    ///
    /// # Errors
    /// When a rank has failed, wherever it was.
    pub(super) fn meet(&self, numbers: [f64; NUMBERS]) -> Result<[f64; NUMBERS], Failure> {
        let Some(t) = &self.others else { return Ok(numbers) };
        let mut message = [0.0; NUMBERS + 2];
        message[2..].copy_from_slice(&numbers);
        let begun = Instant::now();
        t.sum_f64(&mut message);
        self.spent.set(self.spent.get() + begun.elapsed());
        let [failed, which, ref sums @ ..] = message;
        if failed > 0.0 {
            self.ended.set(true);
            let who = if failed == 1.0 { format!("rank {which}") } else { format!("{failed} of {} ranks", t.size()) };
            return Err(Failure::check(format!("{who} failed, which ends the run on all ranks")));
        }
        let mut out = [0.0; NUMBERS];
        out.copy_from_slice(sums);
        Ok(out)
    }

    /// The last word of a rank that has failed.
    pub(super) fn fail(&self) {
        let Some(t) = self.others.as_ref().filter(|_| !self.ended.replace(true)) else { return };
        let mut message = [0.0; NUMBERS + 2];
        (message[0], message[1]) = (1.0, t.rank() as f64);
        t.sum_f64(&mut message);
    }

    /// The first rank's numbers, on all.
    ///
    /// # Errors
    /// As [`Ranks::meet`].
    pub(super) fn of_first(&self, numbers: [f64; NUMBERS]) -> Result<[f64; NUMBERS], Failure> {
        self.meet(if self.is_first() { numbers } else { [0.0; NUMBERS] })
    }

    /// Fails on the ranks whose hash is not the first one's, and then on all.
    pub(super) fn same(&self, hash: u64, what: &str) -> Result<(), Failure> {
        let mut numbers = [0.0; NUMBERS];
        (numbers[0], numbers[1]) = ((hash >> 32) as f64, (hash & 0xffff_ffff) as f64);
        let first = self.of_first(numbers)?;
        if first[..2] != numbers[..2] {
            return Err(Failure::check(format!("{what} of rank {} is not that of rank 0", self.rank())));
        }
        self.meet([0.0; NUMBERS]).map(drop)
    }

    /// Sums of elements over all ranks. Only after a meeting, from which no rank can fail until here.
    pub(super) fn sum(&self, elements: &mut [f32]) {
        if let Some(t) = &self.others {
            self.summed.set(self.summed.get() + size_of_val(elements) as u64);
            let begun = Instant::now();
            t.sum_f32(elements);
            self.spent.set(self.spent.get() + begun.elapsed());
        }
    }

    /// After the last meeting, when nobody listens any more.
    pub(super) fn leave(&self) {
        self.ended.set(true);
    }

    /// An error as one of several ranks tells it.
    pub(super) fn named(&self, e: Failure) -> Failure {
        if self.is_alone() {
            return e;
        }
        Failure { what: format!("rank {} of {}: {}", self.rank(), self.size(), e.what), ..e }
    }
}

/// Which of so many rows are a rank's.
fn share(rows: usize, rank: usize, size: usize) -> Range<usize> {
    rows * rank / size..rows * (rank + 1) / size
}

/// Ranks that are threads of one process.
#[cfg(test)]
pub(super) mod threads {
    use super::{Ranks, Transport};
    use std::rc::Rc;
    use std::sync::{Arc, Barrier, Mutex};

    struct Shared {
        barrier: Barrier,
        /// By rank: what it gave.
        given: Mutex<Vec<Vec<f64>>>,
    }

    struct Thread {
        rank: usize,
        size: usize,
        shared: Arc<Shared>,
    }

    impl Transport for Thread {
        fn rank(&self) -> usize {
            self.rank
        }

        fn size(&self) -> usize {
            self.size
        }

        fn local(&self) -> (usize, usize) {
            (self.rank, self.size)
        }

        fn sum_f64(&self, numbers: &mut [f64]) {
            self.shared.given.lock().unwrap()[self.rank] = numbers.to_vec();
            self.shared.barrier.wait();
            let all = self.shared.given.lock().unwrap().clone();
            assert!(all.iter().all(|g| g.len() == numbers.len()), "ranks sum up different things");
            for (i, n) in numbers.iter_mut().enumerate() {
                *n = all.iter().map(|g| g[i]).sum();
            }
            self.shared.barrier.wait();
        }

        fn sum_f32(&self, numbers: &mut [f32]) {
            let mut wide: Vec<f64> = numbers.iter().map(|v| f64::from(*v)).collect();
            self.sum_f64(&mut wide);
            numbers.iter_mut().zip(wide).for_each(|(n, w)| *n = w as f32);
        }
    }

    /// Does something on so many ranks; what came of it, by rank.
    pub(in crate::train) fn on<T: Send>(size: usize, job: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
        let shared = Arc::new(Shared { barrier: Barrier::new(size), given: Mutex::new(vec![Vec::new(); size]) });
        std::thread::scope(|scope| {
            let start = |rank| {
                let (shared, job) = (shared.clone(), &job);
                scope.spawn(move || job(Ranks::over(Rc::new(Thread { rank, size, shared }))))
            };
            let all: Vec<_> = (0..size).map(start).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_a_batch_and_differ_by_one_row_at_most() {
        for (rows, size) in [(8, 2), (7, 3), (2, 4), (0, 2), (32, 1)] {
            let all: Vec<_> = (0..size).map(|r| share(rows, r, size)).collect();
            assert_eq!(all.iter().cloned().flatten().collect::<Vec<_>>(), (0..rows).collect::<Vec<_>>());
            let (least, most) = (all.iter().map(ExactSizeIterator::len).min(), all.iter().map(ExactSizeIterator::len).max());
            assert!(most.unwrap() - least.unwrap() <= 1);
        }
    }

    #[test]
    fn a_rank_that_fails_is_named_wherever_the_others_are() {
        let said = threads::on(3, |ranks| {
            let mut numbers = [0.0; NUMBERS];
            numbers[0] = ranks.rank() as f64;
            assert_eq!(ranks.meet(numbers).unwrap()[0], 3.0);
            assert_eq!(ranks.of_first([7.0; NUMBERS]).unwrap(), [7.0; NUMBERS]);
            ranks.same(u64::MAX - 3, "the state").unwrap();
            if ranks.rank() == 1 {
                ranks.fail();
                ranks.fail();
                return String::new();
            }
            let said = ranks.meet(numbers).unwrap_err().what;
            // Nobody listens any more.
            ranks.fail();
            said
        });
        assert_eq!(
            said,
            ["rank 1 failed, which ends the run on all ranks", "", "rank 1 failed, which ends the run on all ranks"]
        );
    }

    #[test]
    fn ranks_that_hold_something_else_are_told_apart() {
        let said = threads::on(3, |ranks| {
            let e = ranks.same(u64::from(ranks.rank() == 2), "the state").unwrap_err();
            ranks.fail();
            ranks.named(e).what
        });
        let others = |r| format!("rank {r} of 3: rank 2 failed, which ends the run on all ranks");
        assert_eq!(said, [others(0), others(1), "rank 2 of 3: the state of rank 2 is not that of rank 0".into()]);
    }
}

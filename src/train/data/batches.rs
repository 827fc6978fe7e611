//! Batches, made ahead by one background thread over a bounded queue.

use super::Dataset;
use crate::engine::Tensors;
use crate::error::Failure;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Batches that wait to be taken.
const QUEUE: usize = 4;

/// What one step is fed.
#[derive(Debug)]
pub struct Batch {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Number of the batch within the epoch, from 0.
    pub index: usize,
    /// Does the epoch end with it?
    pub last_of_epoch: bool,
    /// Samples in it.
    pub samples: usize,
    /// The inputs.
    pub feeds: Tensors,
}

/// Order of the samples of an epoch: a permutation that depends on seed and epoch alone, so that a resumed run sees the same
/// batches.
pub fn order(seed: u64, epoch: u64, n: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..u32::try_from(n).unwrap_or(u32::MAX)).collect();
    for i in (1..all.len()).rev() {
        // The bias of the remainder is below 2⁻³².
        let j = mixed(seed, epoch, i as u64) % (i as u64 + 1);
        all.swap(i, j as usize);
    }
    all
}

/// A random number that depends on three numbers alone (splitmix64's finalisers in a row).
pub(super) fn mixed(seed: u64, epoch: u64, item: u64) -> u64 {
    let finish = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let step = |state: u64, value: u64| finish(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ finish(value.wrapping_add(1)));
    step(step(step(0, seed), epoch), item)
}

/// Number of batches of an epoch.
pub fn batches_per_epoch(samples: usize, batch: usize, drop_last: bool) -> usize {
    let batch = batch.max(1);
    if drop_last { samples / batch } else { samples.div_ceil(batch) }
}

/// Batches in order, epoch after epoch.
pub struct Batches {
    queue: Option<Receiver<Result<Batch, Failure>>>,
    thread: Option<JoinHandle<()>>,
}

impl Batches {
    /// Starts at batch `from` of epoch `epoch` and goes on over the epochs, shuffled; of each batch the rows that `part` gives of so many.
    /// A batch may have none.
    pub(in crate::train) fn of_part(
        set: Arc<dyn Dataset>,
        seed: u64,
        batch: usize,
        (epoch, from): (u64, usize),
        drop_last: bool,
        part: impl Fn(usize) -> Range<usize> + Send + 'static,
    ) -> Batches {
        let plan = BatchMaker { set, seed, batch: batch.max(1), drop_last, shuffle: true, part: Box::new(part) };
        plan.start(epoch, from)
    }

    /// Starts at batch `from` of epoch `epoch` and goes on over the epochs.
    pub fn start(
        set: Arc<dyn Dataset>,
        seed: u64,
        batch: usize,
        epoch: u64,
        from: usize,
        drop_last: bool,
        shuffle: bool,
    ) -> Batches {
        let plan = BatchMaker { set, seed, batch: batch.max(1), drop_last, shuffle, part: Box::new(|rows| 0..rows) };
        plan.start(epoch, from)
    }

    /// The next batch. An error is the last item.
    #[allow(clippy::should_implement_trait, reason = "an iterator would invite collecting an endless one")]
    pub fn next(&mut self) -> Option<Result<Batch, Failure>> {
        self.queue.as_ref()?.recv().ok()
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // The thread ends when it cannot send a batch.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct BatchMaker {
    set: Arc<dyn Dataset>,
    seed: u64,
    batch: usize,
    drop_last: bool,
    shuffle: bool,
    /// Of so many rows those that are taken.
    part: Box<dyn Fn(usize) -> Range<usize> + Send>,
}

impl BatchMaker {
    fn start(self, epoch: u64, from: usize) -> Batches {
        let (sender, queue) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("batches".into()).spawn(move || {
            let done = catch_unwind(AssertUnwindSafe(|| self.run(epoch, from, &sender)));
            if done.is_err() {
                let _ = sender.send(Err(Failure::input("reading the data set failed; this is a fault of ancre-rewrite")
                    .help("report it with the lines above")));
            }
        });
        Batches { queue: Some(queue), thread: thread.ok() }
    }

    fn run(&self, epoch: u64, from: usize, sender: &SyncSender<Result<Batch, Failure>>) {
        let samples = self.set.len();
        let count = batches_per_epoch(samples, self.batch, self.drop_last);
        if count == 0 {
            let what = format!("the data set has {samples} samples, fewer than one batch of {}", self.batch);
            let _ = sender.send(Err(Failure::input(what).help("use a smaller --batch-size or more data")));
            return;
        }
        let mut from = from;
        for epoch in epoch.. {
            let order = self.shuffle.then(|| order(self.seed, epoch, samples));
            for index in from..count {
                let range = index * self.batch..samples.min((index + 1) * self.batch);
                let part = (self.part)(range.len());
                let range = range.start + part.start..range.start + part.end;
                let rows: Vec<usize> = range.map(|i| order.as_ref().map_or(i, |o| o[i] as usize)).collect();
                let feeds = if rows.is_empty() { Ok(Tensors::new()) } else { self.set.batch(&rows, epoch) };
                let made =
                    feeds.map(|feeds| Batch { epoch, index, last_of_epoch: index + 1 == count, samples: rows.len(), feeds });
                let failed = made.is_err();
                if sender.send(made).is_err() || failed {
                    return;
                }
            }
            from = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tensor::NpTensor;

    struct Numbers(usize);

    impl Dataset for Numbers {
        fn len(&self) -> usize {
            self.0
        }
        fn describe(&self) -> String {
            "numbers".into()
        }
        fn batch(&self, rows: &[usize], epoch: u64) -> Result<Tensors, Failure> {
            assert!(epoch < 7, "an epoch too far");
            if epoch == 5 {
                return Err(Failure::input("sample 3 is damaged"));
            }
            let values: Vec<i64> = rows.iter().map(|r| *r as i64).collect();
            Ok(Tensors::from([("x".to_string(), NpTensor::i64s(&[rows.len()], &values).unwrap())]))
        }
    }

    fn taken(batches: &mut Batches, n: usize) -> Vec<(u64, usize, bool, Vec<i64>)> {
        let take = |b: Batch| (b.epoch, b.index, b.last_of_epoch, b.feeds["x"].to_i64());
        (0..n).map(|_| take(batches.next().unwrap().unwrap())).collect()
    }

    #[test]
    fn every_epoch_is_another_permutation() {
        for n in [1, 2, 10, 1000] {
            for epoch in 0..3 {
                let mut all = order(7, epoch, n);
                assert_eq!(all, order(7, epoch, n));
                assert!(n < 10 || (all != order(7, epoch + 1, n) && all != order(8, epoch, n)));
                all.sort_unstable();
                assert_eq!(all, (0..n as u32).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_resumed_run_sees_the_same_batches() {
        let start = |epoch, from| Batches::start(Arc::new(Numbers(10)), 1, 3, epoch, from, true, true);
        let all = taken(&mut start(0, 0), 9);
        assert_eq!(all.iter().map(|b| (b.0, b.1)).collect::<Vec<_>>()[2..5], [(0, 2), (1, 0), (1, 1)]);
        assert_eq!(all[4..], taken(&mut start(1, 1), 5));
        assert!(all.iter().all(|b| b.3.len() == 3 && b.2 == (b.1 == 2)));
    }

    #[test]
    fn without_dropping_every_sample_comes_once_and_in_order_unless_shuffled() {
        let mut batches = Batches::start(Arc::new(Numbers(7)), 1, 3, 0, 0, false, false);
        let all = taken(&mut batches, 3);
        assert_eq!(all.iter().flat_map(|b| b.3.clone()).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
        assert_eq!((all[2].2, all[2].3.len()), (true, 1));
    }

    #[test]
    fn errors_and_panics_reach_the_taker_and_end_the_batches() {
        for (epoch, said) in [(5, "sample 3 is damaged"), (7, "a fault of ancre-rewrite")] {
            let mut batches = Batches::start(Arc::new(Numbers(4)), 1, 2, epoch, 0, true, true);
            let e = batches.next().unwrap().unwrap_err();
            assert!(e.what.contains(said), "{e}");
            assert!(batches.next().is_none());
        }
        let mut few = Batches::start(Arc::new(Numbers(4)), 1, 8, 0, 0, true, true);
        assert!(few.next().unwrap().unwrap_err().what.contains("4 samples, fewer than one batch of 8"));
    }

    #[test]
    fn a_batch_that_nobody_takes_does_not_keep_the_thread() {
        let set: Arc<dyn Dataset> = Arc::new(Numbers(1000));
        let mut batches = Batches::start(set.clone(), 1, 1, 0, 0, true, true);
        batches.next().unwrap().unwrap();
        drop(batches);
        assert_eq!(Arc::strong_count(&set), 1);
    }
}

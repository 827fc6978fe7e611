//! Ranks that `mpirun` started.

use super::ranks::Transport;
use crate::error::Failure;
use mpi::collective::{CommunicatorCollectives, SystemOperation};
use mpi::environment::{Threading, Universe, initialize_with_threading};
use mpi::topology::{Communicator, SimpleCommunicator};
use std::cell::RefCell;

/// The processes of one `mpirun`.
pub(super) struct Mpi {
    world: SimpleCommunicator,
    local: (usize, usize),
    /// Where sums arrive.
    sums: RefCell<Vec<f32>>,
    /// MPI is finished when this goes.
    _universe: Universe,
}

impl Mpi {
    /// Joins the others. Only this thread speaks to them.
    ///
    /// # Errors
    /// When MPI was started in this process before.
    pub(super) fn start() -> Result<Mpi, Failure> {
        let started = initialize_with_threading(Threading::Funneled);
        let (universe, _) = started.ok_or_else(|| Failure::input("MPI was started in this process before"))?;
        let world = universe.world();
        let here = world.split_shared(world.rank());
        let local = (here.rank() as usize, here.size() as usize);
        Ok(Mpi { world, local, sums: RefCell::default(), _universe: universe })
    }
}

impl Transport for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn local(&self) -> (usize, usize) {
        self.local
    }

    fn sum_f64(&self, numbers: &mut [f64]) {
        let own = numbers.to_vec();
        self.world.all_reduce_into(own.as_slice(), numbers, SystemOperation::sum());
    }

    fn sum_f32(&self, numbers: &mut [f32]) {
        let mut sums = self.sums.borrow_mut();
        sums.resize(numbers.len(), 0.0);
        self.world.all_reduce_into(&*numbers, sums.as_mut_slice(), SystemOperation::sum());
        numbers.copy_from_slice(&sums);
    }
}

//! The memory that the operators of all queries share.
//!
//! An equal share for each operator that can spill lets most of the memory lie idle: of a dozen of them two or three are
//! large. Here everybody takes what is free, and only when it runs short those that hold more than their share spill.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use datafusion::common::{Result, resources_err};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

/// The part of the pool that is kept for those that cannot spill: one of so many.
const KEPT: usize = 8;

/// A bounded pool of memory.
#[derive(Debug)]
pub(crate) struct SharedPool {
    size: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Operators that can spill.
    spillers: usize,
    /// Bytes of those that can spill, and of those that cannot.
    spillable: usize,
    fixed: usize,
}

impl SharedPool {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn bytes(&mut self, reservation: &MemoryReservation) -> &mut usize {
        if reservation.consumer().can_spill() { &mut self.spillable } else { &mut self.fixed }
    }
}

impl MemoryPool for SharedPool {
    fn name(&self) -> &str {
        "shared"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.state().spillers += usize::from(consumer.can_spill());
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        let mut state = self.state();
        state.spillers = state.spillers.saturating_sub(usize::from(consumer.can_spill()));
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        *self.state().bytes(reservation) += additional;
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        let mut state = self.state();
        let bytes = state.bytes(reservation);
        *bytes = bytes.saturating_sub(shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let mut state = self.state();
        let free = self.size.saturating_sub(state.spillable + state.fixed);
        let fits = if reservation.consumer().can_spill() {
            let (kept, share) = (self.size / KEPT, self.size.saturating_sub(state.fixed) / state.spillers.max(1));
            // The last of the memory is for those that have less than their share of it, or cannot spill.
            additional <= free.saturating_sub(kept) || (additional <= free && reservation.size() + additional <= share)
        } else {
            additional <= free
        };
        if !fits {
            let (who, has) = (reservation.consumer().name(), reservation.size());
            return resources_err!("{who} has {has} bytes and needs {additional} more; {free} of {} are free", self.size);
        }
        *state.bytes(reservation) += additional;
        Ok(())
    }

    fn reserved(&self) -> usize {
        let state = self.state();
        state.spillable + state.fixed
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.size)
    }
}

impl fmt::Display for SharedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shared pool of {} bytes", self.size)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_free_is_for_everybody_and_the_last_of_it_for_small_ones() {
        let pool: Arc<dyn MemoryPool> = Arc::new(SharedPool::new(800));
        let reserve = |name: &str, can_spill| MemoryConsumer::new(name).with_can_spill(can_spill).register(&pool);
        let (large, small, fixed) = (reserve("large", true), reserve("small", true), reserve("fixed", false));
        large.try_grow(700).unwrap();
        assert!(large.try_grow(1).is_err());
        small.try_grow(60).unwrap();
        fixed.try_grow(40).unwrap();
        assert!(small.try_grow(1).is_err() && fixed.try_grow(1).is_err());
        large.free();
        fixed.try_grow(640).unwrap();
        // Of 120 bytes that are left to two, each has 60.
        assert!(small.try_grow(1).is_err());
        assert_eq!(pool.reserved(), 740);
    }
}

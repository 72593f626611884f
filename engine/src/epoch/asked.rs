//! What is kept of a folded rule between questions: charges as they were evaluated last, and a second state with the usage
//! that came after the last epoch.

use std::sync::Arc;

use arrow::array::RecordBatch;
use ratemill_rules::{Evaluator, Fold, FoldState, OpenWindows, RateError, RunningCharges, WindowCharges};
use ratemill_schemas::Window;
use tokio::sync::Mutex;

use super::folds::{RuleFold, joined};
use super::run::EpochError;
use super::tail::TailUsage;

/// What is kept of one rule. Who asks for one customer does not wait for whoever evaluates all of them.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Charges from the state of the last epoch.
    pub(super) known: Mutex<RunningCharges>,
    later: Mutex<Option<Later>>,
}

/// Usage that came after the last epoch.
#[derive(Debug)]
struct Later {
    /// Position of the log from which on usage is in it.
    from: i64,
    /// Position up to which usage is in it.
    to: i64,
    state: FoldState,
    windows: Vec<Window>,
    open: OpenWindows,
}

impl Later {
    fn new(fold: &Arc<Fold>, from: i64, windows: &[Window]) -> Result<Self, RateError> {
        Ok(Self { from, to: from, state: fold.state(), windows: windows.to_vec(), open: fold.open(windows)? })
    }

    /// Folds what it does not have.
    async fn follow(&mut self, tail: &[TailUsage]) -> Result<(), EpochError> {
        let new: Vec<RecordBatch> = tail.iter().filter(|usage| usage.position >= self.to).map(|usage| usage.batch.clone()).collect();
        for batch in joined(&new) {
            let batch = batch.map_err(EpochError::arrow)?;
            self.state.fold(&batch, &self.open).await?;
        }
        self.to = tail.last().map_or(self.to, |usage| usage.end.max(self.to));
        Ok(())
    }
}

impl Asked {
    /// The charges of windows from the folded state, which has usage up to `position`, and `tail`.
    pub(super) async fn charges(
        &self,
        (fold, position): (&RuleFold, i64),
        tail: &[TailUsage],
        windows: &[Window],
        evaluator: &Evaluator,
        customer: Option<&str>,
    ) -> Result<Vec<WindowCharges>, EpochError> {
        if tail.is_empty() {
            return Ok(self.evaluated(fold, None, windows, evaluator, customer).await?);
        }
        let mut kept = self.later.lock().await;
        // Who is stopped half-way leaves none that has a part of the tail.
        let mut later = match kept.take().filter(|later| later.from == position && later.windows == windows) {
            Some(later) => later,
            None => Later::new(&fold.fold, position, windows)?,
        };
        later.follow(tail).await?;
        let charges = self.evaluated(fold, Some(&later.state), windows, evaluator, customer).await;
        *kept = Some(later);
        Ok(charges?)
    }

    async fn evaluated(
        &self,
        fold: &RuleFold,
        later: Option<&FoldState>,
        windows: &[Window],
        evaluator: &Evaluator,
        customer: Option<&str>,
    ) -> Result<Vec<WindowCharges>, RateError> {
        let (charges, groups) = match customer.filter(|_| fold.fold.tells_customers_apart()) {
            Some(customer) => fold.state.running_of(later, windows, evaluator, customer).await?,
            None => {
                let mut known = self.known.lock().await;
                let before = known.groups();
                let charges = fold.state.running(later, windows, evaluator, &mut known).await?;
                (charges, known.groups() - before)
            }
        };
        metrics::counter!("ratemill_running_groups_total").increment(groups as u64);
        Ok(charges)
    }
}

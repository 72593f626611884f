//! What open windows begin with, of rules that read `opening`: the last events before them. They are noted while usage is
//! folded; here is what else there is to note: the usage of all time at a start, and again that of subjects of whom an event
//! was voided or amended.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{Expr, col, lit};
use futures::TryStreamExt;
use ratemill_rules::Forgotten;
use ratemill_rules::session::{SessionLimits, session};
use ratemill_schemas::time;

use super::changes::{Changes, EventId};
use super::folds::{Folds, RuleFold, open_windows};
use super::run::EpochError;
use super::state::EngineState;

impl RuleFold {
    /// Whether the rule reads what was before its windows.
    pub(super) fn reads_opening(&self) -> bool {
        !self.fold.rule().options.carry.is_empty()
    }

    /// What was before windows that are final is not asked for any more.
    pub(super) fn forget_passed(&mut self, state: &EngineState) -> Result<(), EpochError> {
        if !self.reads_opening() {
            return Ok(());
        }
        let rule = self.fold.rule();
        // A window without usage waits for the clock; one that waits longer is read from the table.
        let waiting = time::now().saturating_sub(rule.options.grace);
        let first_waiting = rule.windows_between(self.fold.reference(), waiting, waiting.saturating_add(1))?;
        let first_open = open_windows(rule, state).into_iter().next();
        let starts = first_waiting.iter().chain(&first_open).map(|window| window.start);
        Ok(self.state.open_from(starts.min().unwrap_or(waiting))?)
    }
}

impl Folds {
    /// Notes the openings that these events are, for the rules that are chosen.
    async fn note_openings(
        &mut self,
        usage: &Arc<dyn TableProvider>,
        events: Expr,
        chosen: impl Fn(&RuleFold) -> bool,
        (runtime, limits): (&Arc<RuntimeEnv>, &SessionLimits),
    ) -> Result<(), EpochError> {
        let mut rules: Vec<&mut RuleFold> = self.rules.iter_mut().filter(|rule| rule.reads_opening() && chosen(rule)).collect();
        if rules.is_empty() {
            return Ok(());
        }
        let context = session(Arc::clone(runtime), limits);
        let mut stream = context.read_table(Arc::clone(usage))?.filter(events)?.execute_stream().await?;
        while let Some(batch) = stream.try_next().await? {
            for rule in &mut rules {
                rule.state.open_with(&batch)?;
            }
        }
        Ok(())
    }

    /// Notes at a start what open windows begin with: of all usage, or where the state came out of a checkpoint, of what was
    /// logged since position `loaded`.
    pub(super) async fn catch_up_openings(
        &mut self,
        usage: &Arc<dyn TableProvider>,
        changes: &Changes,
        loaded: i64,
        session: (&Arc<RuntimeEnv>, &SessionLimits),
    ) -> Result<(), EpochError> {
        self.note_openings(usage, col("log_position").gt_eq(lit(loaded)), |rule| rule.is_loaded, session).await?;
        self.rules.iter_mut().for_each(|rule| rule.opens = rule.is_loaded || !rule.reads_opening());
        // Which of the events in the checkpoint were changed after it, nobody knows.
        self.renew_openings(|source, id| changes.is_changed(source, id), changes, usage, session).await
    }

    /// Notes anew what is in force of the subjects of these events: they were voided or amended, or came after their changes.
    /// `usage` is in force by now.
    pub(super) async fn renew_openings(
        &mut self,
        is_changed: impl Fn(&str, &str) -> bool,
        changes: &Changes,
        usage: &Arc<dyn TableProvider>,
        session: (&Arc<RuntimeEnv>, &SessionLimits),
    ) -> Result<(), EpochError> {
        let mut subjects: BTreeSet<String> = BTreeSet::new();
        let mut all = false;
        for rule in self.rules.iter_mut().filter(|rule| rule.reads_opening() && !rule.is_given_up) {
            let was_whole = rule.opens;
            // Until all is noted again.
            rule.opens = false;
            rule.asked.known.get_mut().forget_all();
            match rule.state.forget_openings(&is_changed)? {
                Forgotten::Nothing => rule.opens = was_whole,
                Forgotten::Subjects(of) => subjects.extend(of),
                Forgotten::All => all = true,
            }
            // One that was left half-way, and a new one.
            all |= !was_whole;
        }
        let events = if all { lit(true) } else { col("subject").in_list(subjects.into_iter().map(lit).collect(), false) };
        self.note_openings(usage, events, |rule| !rule.opens && !rule.is_given_up, session).await?;
        for rule in self.rules.iter_mut().filter(|rule| rule.reads_opening() && !rule.is_given_up) {
            if let Some(amended) = changes.amended() {
                rule.state.open_with(amended)?;
            }
            rule.opens = true;
        }
        Ok(())
    }
}

impl super::run::Epochs {
    /// Follows the changes of an epoch that left these events waiting.
    pub(super) async fn follow_changes(&mut self, changed: &BTreeSet<EventId>, after: &Changes) -> Result<(), EpochError> {
        let usage = after.over(self.usage()?)?;
        let is_changed = |source: &str, id: &str| changed.contains(&EventId { source: source.to_owned(), id: id.to_owned() });
        self.folds.renew_openings(is_changed, after, &usage, (&self.runtime, &self.limits)).await
    }
}

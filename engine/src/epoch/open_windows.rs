//! Windows that had usage before their rule was there: a rule that is new, or was away, or whose contracts cut its windows
//! anew. They are noted as open at a start, so that they have running charges and are folded like all others.

use std::collections::{BTreeMap, HashSet};

use datafusion::common::ScalarValue;
use datafusion::prelude::{col, lit};
use futures::TryStreamExt;
use ratemill_rules::session::session;
use ratemill_rules::{Rule, RuleWindow};
use ratemill_schemas::time;

use super::due;
use super::folds::tracked_version;
use super::run::{EpochError, Epochs};
use super::state::{OpenWindow, Tracked};

impl Epochs {
    /// Notes the windows of such rules that have usage and are not final. Usage is read from the first of them on; the next
    /// manifest has what is found, and until then a start reads it again.
    ///
    /// # Errors
    /// [`EpochError`].
    pub async fn note_open_windows(&mut self) -> Result<(), EpochError> {
        // What another project noted is not kept up by this one, and its open windows may be gone with it.
        let present: HashSet<(&str, String)> =
            self.project.rules.iter().map(|rule| (rule.name.as_str(), tracked_version(rule, &self.project.reference))).collect();
        self.state.tracked.retain(|tracked| present.contains(&(tracked.rule.as_str(), tracked.rule_version.clone())));
        let mut rules: Vec<Rule> = Vec::new();
        let mut first = i64::MAX;
        for rule in self.project.rules.iter().filter(|rule| rule.reads_usage) {
            let version = tracked_version(rule, &self.project.reference);
            if self.state.fresh_from(&rule.name, &version) > rule.options.effective_from {
                first = first.min(self.first_waiting(rule)?.unwrap_or(i64::MAX));
                rules.push(rule.clone());
            }
        }
        let found = self.windows_with_usage(&rules, first).await?;
        for rule in &rules {
            let known: HashSet<RuleWindow> =
                self.state.open.iter().filter(|open| open.rule == rule.name).map(|open| open.window.clone()).collect();
            let new = found.iter().filter(|((name, window), _)| *name == rule.name && !known.contains(window));
            let new: Vec<OpenWindow> = new
                .filter(|((_, window), _)| rule.in_force_at(window.window.start) && self.state.finalized.get(&rule.name, window).is_none())
                .map(|((_, window), first_ingest)| OpenWindow {
                    rule: rule.name.clone(),
                    window: window.clone(),
                    first_ingest: *first_ingest,
                    late_as_a_whole: false,
                    changed_at: 0,
                })
                .collect();
            if !new.is_empty() {
                tracing::info!(rule = rule.name, windows = new.len(), "open windows have usage from before the rule was there");
            }
            self.state.open.extend(new);
            let rule_version = tracked_version(rule, &self.project.reference);
            self.state.tracked.retain(|tracked| tracked.rule != rule.name || tracked.rule_version != rule_version);
            // Before all windows; a version that was away meanwhile begins at another position, and so has another instant.
            let fresh_from = i64::MIN.saturating_add(self.state.position.max(1));
            self.state.tracked.push(Tracked { rule: rule.name.clone(), rule_version, fresh_from });
        }
        Ok(())
    }

    /// The start of the first window of a rule that is not final, up to the latest that usage may be of.
    fn first_waiting(&self, rule: &Rule) -> Result<Option<i64>, EpochError> {
        let sent = self.state.inputs.values().filter_map(|input| input.time_max).chain(self.state.latest_event).max();
        let latest = time::now().saturating_add(self.future_skew).max(sent.unwrap_or(i64::MIN));
        let rated = rule.rated_between(&self.project.reference, rule.options.effective_from, latest.saturating_add(1))?;
        let waiting = rated.iter().filter(|rated| self.state.finalized.get(&rule.name, rated).is_none());
        Ok(waiting.map(|rated| rated.window.start).min())
    }

    /// The windows of these rules that usage from `first` on is in, by rule, with the first time that some of it was logged.
    async fn windows_with_usage(&self, rules: &[Rule], first: i64) -> Result<BTreeMap<(String, RuleWindow), i64>, EpochError> {
        let mut found: BTreeMap<(String, RuleWindow), i64> = BTreeMap::new();
        if rules.is_empty() || first == i64::MAX {
            return Ok(found);
        }
        let in_time = col("day")
            .gt_eq(lit(ScalarValue::Date32(Some(time::day_of(first)))))
            .and(col("time").gt_eq(lit(ScalarValue::TimestampMicrosecond(Some(first), Some("UTC".into())))));
        let usage = self.changes.over(self.usage()?)?;
        let columns = ["meter", "subject", "time", "ingested_at"];
        let context = session(std::sync::Arc::clone(&self.runtime), &self.limits);
        let mut stream = context.read_table(usage)?.filter(in_time)?.select_columns(&columns)?.execute_stream().await?;
        while let Some(batch) = stream.try_next().await? {
            let touched = due::touched(rules, &self.project.reference, &self.state, &self.moved, &[batch])?;
            for (rule, window, first_ingest) in touched.into_iter().flat_map(due::Touched::into_windows) {
                let known = found.entry((rule, window)).or_insert(first_ingest);
                *known = (*known).min(first_ingest);
            }
        }
        Ok(found)
    }
}

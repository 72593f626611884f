//! Which windows an epoch evaluates.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use ratemill_rules::{Reach, ReferenceData, Rule, RuleProject, RuleWindow};
use ratemill_schemas::windows::WindowError;
use ratemill_schemas::{BillingPeriods, Window, WindowSpec};

use super::finalized::Finalized;
use super::manifest::WindowTask;
use super::moved::MovedSubjects;
use super::state::{EngineState, OpenWindow};

/// When windows become final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finalize {
    /// By watermark or clock and the rule's grace.
    Live,
    /// Those wholly inside `[from, to)`, µs UTC; with `re_rate` also those that were published before.
    Range {
        /// First instant.
        from: i64,
        /// First instant after.
        to: i64,
        /// Windows that begin after this instant stay open.
        begun: i64,
        /// Evaluate published windows again with the present rules and reference data.
        re_rate: bool,
    },
    /// None, but late usage of published windows is rated.
    Late,
    /// None: usage is only stored.
    Nothing,
}

/// What the usage of an epoch touches of one rule.
#[derive(Debug)]
pub(super) struct Touched<'p> {
    rule: &'p Rule,
    /// The windows that it falls into, with the first time that it was logged.
    windows: BTreeMap<RuleWindow, i64>,
    /// Its earliest time, in a window of this version or before, and when it was logged.
    earliest: Option<(i64, i64)>,
}

impl Touched<'_> {
    /// The windows, each with its rule and the first time that usage in it was logged.
    pub(super) fn into_windows(self) -> impl Iterator<Item = (String, RuleWindow, i64)> {
        let rule = self.rule.name.clone();
        self.windows.into_iter().map(move |(window, first)| (rule.clone(), window, first))
    }
}

/// The windows that these rows fall into.
pub(super) fn touched<'p>(
    rules: &'p [Rule],
    reference: &ReferenceData,
    state: &EngineState,
    moved: &MovedSubjects,
    batches: &[RecordBatch],
) -> Result<Vec<Touched<'p>>, WindowError> {
    let mut touched: Vec<Touched<'p>> =
        rules.iter().filter(|rule| rule.reads_usage).map(|rule| Touched { rule, windows: BTreeMap::new(), earliest: None }).collect();
    for batch in batches {
        let schema = batch.schema();
        let column = |name: &str| schema.index_of(name).ok().map(|index| batch.column(index));
        let (Some(meters), Some(subjects), Some(times), Some(ingested)) =
            (column("meter"), column("subject"), column("time"), column("ingested_at"))
        else {
            continue;
        };
        let (meters, subjects) = (meters.as_string::<i32>(), subjects.as_string::<i32>());
        let times = times.as_primitive::<TimestampMicrosecondType>().values();
        let ingested = ingested.as_primitive::<TimestampMicrosecondType>().values();
        for Touched { rule, windows, earliest } in &mut touched {
            // Most rows fall into the window of the row before.
            let mut last: Option<Window> = None;
            for row in 0..batch.num_rows() {
                let (time, ingested) = (times[row], ingested[row]);
                if !rule.reads(meters.value(row)) {
                    continue;
                }
                if earliest.is_none_or(|(first, _)| time < first) {
                    *earliest = Some((time, ingested));
                }
                if last.is_some_and(|window| window.contains(time)) {
                    continue;
                }
                let rated = if rule.options.window == WindowSpec::BillingPeriod {
                    periods_of(rule, reference, state, moved, subjects.value(row), time)?
                } else {
                    let window = rule.options.window.window_of(time)?;
                    last = Some(window);
                    vec![RuleWindow { window, contract_id: None }]
                };
                for rated in rated.into_iter().filter(|rated| rule.in_force_at(rated.window.start)) {
                    let first = windows.entry(rated).or_insert(ingested);
                    *first = (*first).min(ingested);
                }
            }
        }
    }
    Ok(touched)
}

/// The billing period of an event: the published one that holds its time, be it of a contract that its subject had before,
/// else as the contract says now. Charges of other
/// rules reach a contract by other ways than the event's subject: a rule that reads them is touched for every contract.
fn periods_of(
    rule: &Rule,
    reference: &ReferenceData,
    state: &EngineState,
    moved: &MovedSubjects,
    subject: &str,
    time: i64,
) -> Result<Vec<RuleWindow>, WindowError> {
    let none = BillingPeriods::default();
    let periods = reference.billing_periods().map_or(&none, |periods| periods);
    let before = moved.published_contract(&state.finalized, &rule.name, subject, time);
    let mut contracts: BTreeSet<String> = before.map(str::to_owned).into_iter().collect();
    if !rule.upstream.is_empty() {
        contracts.extend(periods.between(time, time.saturating_add(1))?.into_iter().map(|period| period.contract_id));
    } else if contracts.is_empty() {
        contracts.extend(periods.contract_of(subject, time).map(str::to_owned));
    }
    let mut rated = Vec::with_capacity(contracts.len());
    for contract in contracts {
        let window = match state.finalized.published_period(&rule.name, &contract, time) {
            Some(published) => Some(published),
            None => periods.period_of(&contract, time)?,
        };
        rated.extend(window.map(|window| RuleWindow { window, contract_id: Some(contract) }));
    }
    Ok(rated)
}

/// Adds the finalized windows after the usage, for rules whose windows see what was before them.
pub(super) fn reach_onward(state: &EngineState, reference: &ReferenceData, touched: &mut [Touched<'_>]) -> Result<(), WindowError> {
    for Touched { rule, windows, earliest } in touched.iter_mut().filter(|touched| touched.rule.reach == Reach::Onward) {
        let Some((time, ingested)) = *earliest else { continue };
        let Some(to) = state.finalized.of_rule(&rule.name).map(|range| range.end).max() else { continue };
        for rated in rule.rated_between(reference, time, to)? {
            if rated.window.start > time && state.finalized.get(&rule.name, &rated).is_some() {
                windows.entry(rated).or_insert(ingested);
            }
        }
    }
    Ok(())
}

/// Published windows of versions that are no longer in the project, which these rows fall into.
pub(super) fn late_for_former(
    state: &EngineState,
    former: &[Rule],
    reference: &ReferenceData,
    moved: &MovedSubjects,
    batches: &[RecordBatch],
) -> Result<Vec<WindowTask>, WindowError> {
    let mut late = Vec::new();
    let mut touched = touched(former, reference, state, moved, batches)?;
    reach_onward(state, reference, &mut touched)?;
    for Touched { rule, windows, .. } in touched {
        for window in windows.into_keys() {
            if let Some(range) = state.finalized.get(&rule.name, &window)
                && range.published
                && range.rule_version == rule.version
            {
                late.push(late_task(range, window));
            }
        }
    }
    Ok(late)
}

fn late_task(range: &Finalized, window: RuleWindow) -> WindowTask {
    WindowTask {
        rule: range.rule.clone(),
        rule_version: range.rule_version.clone(),
        reference_version: range.reference_version.clone(),
        window,
        cause: "late usage".to_owned(),
    }
}

/// Adds touched windows to the open ones, or returns them as late where they were published.
pub(super) fn note_usage(state: &mut EngineState, touched: Vec<Touched<'_>>, watermark_before: Option<i64>) -> Vec<WindowTask> {
    let mut late = Vec::new();
    for Touched { rule, windows, .. } in touched {
        for (window, first_ingest) in windows {
            match state.finalized.get(&rule.name, &window) {
                Some(range) if range.published => late.push(late_task(range, window)),
                found => {
                    let was_closed = found.is_some();
                    if was_closed {
                        state.finalized.remove(&rule.name, &window);
                    }
                    if !state.open.iter().any(|open| open.rule == rule.name && open.window == window) {
                        let deadline = window.window.end.saturating_add(rule.options.grace);
                        state.open.push(OpenWindow {
                            rule: rule.name.clone(),
                            window,
                            first_ingest,
                            late_as_a_whole: watermark_before.is_some_and(|watermark| watermark >= deadline),
                            changed_at: 0,
                        });
                    }
                }
            }
        }
    }
    late
}

/// The windows that become final now, by rule and start.
pub(super) fn due(
    state: &EngineState,
    (project, former): (&RuleProject, &[Rule]),
    moved: &MovedSubjects,
    clock: i64,
    finalize: Finalize,
) -> Result<Vec<WindowTask>, WindowError> {
    let mut tasks = Vec::new();
    for rule in &project.rules {
        let (from, to) = match finalize {
            Finalize::Nothing | Finalize::Late => return Ok(tasks),
            Finalize::Live => (rule.options.effective_from, clock.max(state.watermark.unwrap_or(clock))),
            Finalize::Range { from, to, .. } => (from.max(rule.options.effective_from), to),
        };
        let mut candidates = Vec::new();
        for rated in rule.rated_between(&project.reference, from, to)? {
            let published = state.finalized.get(&rule.name, &rated);
            let window = rated.window;
            let is_due = match finalize {
                Finalize::Range { from, to, begun, re_rate } => {
                    let inside = window.start >= from && window.end <= to && window.start <= begun;
                    inside && (re_rate || published.is_none())
                }
                _ => published.is_none() && is_due(state, rule, &rated, clock),
            };
            if is_due {
                let cause = if published.is_some_and(|range| range.published) { "re-rate" } else { WindowTask::CLOSED };
                candidates.push((rated, cause));
            }
        }
        if let Finalize::Range { from, to, re_rate: true, .. } = finalize {
            candidates.extend(stale_periods(state, rule, &project.reference, from, to)?.into_iter().map(|stale| (stale, "re-rate")));
        }
        tasks.extend(without_held(state, moved, rule, candidates).into_iter().map(|(window, cause)| WindowTask {
            rule: rule.name.clone(),
            rule_version: rule.version.clone(),
            reference_version: project.reference.version().to_owned(),
            window,
            cause: cause.to_owned(),
        }));
    }
    if let Finalize::Range { re_rate: true, .. } = finalize {
        add_readers(state, (project, former), &mut tasks)?;
    }
    Ok(tasks)
}

/// A window that no epoch has finalized.
#[derive(Debug)]
pub(super) struct Unpublished {
    /// The rule.
    pub(super) rule: String,
    /// The window.
    pub(super) rated: RuleWindow,
    /// When it becomes due by the clock, µs UTC; `None` when it is due.
    pub(super) due_at: Option<i64>,
}

/// Windows that `month` waits for when it is closed: those that end in it or before and are not final, due or not.
pub(super) fn unpublished(state: &EngineState, project: &RuleProject, month: Window, clock: i64) -> Result<Vec<Unpublished>, WindowError> {
    let mut found = Vec::new();
    for rule in &project.rules {
        for rated in rule.rated_between(&project.reference, rule.options.effective_from, month.end)? {
            // What lies before the first month that is ever closed was left out on purpose, unless it has usage.
            let counts = rated.window.end > month.start || !state.closed.is_empty() || open_window(state, rule, &rated).is_some();
            if counts && rated.window.end <= month.end && state.finalized.get(&rule.name, &rated).is_none() {
                let due_at = (!is_due(state, rule, &rated, clock)).then(|| clock_deadline(state, rule, &rated));
                found.push(Unpublished { rule: rule.name.clone(), rated, due_at });
            }
        }
    }
    Ok(found)
}

/// Takes out billing periods whose contract or subjects were changed after publication, unless every published period
/// that the same usage is in is rated with them: else that usage would be charged twice, or not at all.
pub(super) fn without_held<'c>(
    state: &EngineState,
    moved: &MovedSubjects,
    rule: &Rule,
    mut candidates: Vec<(RuleWindow, &'c str)>,
) -> Vec<(RuleWindow, &'c str)> {
    if rule.options.window != WindowSpec::BillingPeriod {
        return candidates;
    }
    let mut held: Vec<RuleWindow> = Vec::new();
    loop {
        let rated: BTreeSet<&RuleWindow> = candidates.iter().map(|(rated, _)| rated).collect();
        let next: Vec<(RuleWindow, RuleWindow)> = candidates
            .iter()
            .filter_map(|(candidate, _)| {
                let mut needed =
                    state.finalized.cut_differently(&rule.name, candidate).chain(moved.sharing(&state.finalized, &rule.name, candidate));
                let missing = needed.find(|other| !rated.contains(other));
                let left = || held.iter().find(|other| moved.goes_to(&state.finalized, &rule.name, candidate, other)).cloned();
                Some((candidate.clone(), missing.or_else(left)?))
            })
            .collect();
        if next.is_empty() {
            return candidates;
        }
        for (period, needed) in next {
            if candidates.iter().any(|(candidate, cause)| *candidate == period && *cause == "re-rate") {
                tracing::warn!(
                    rule = rule.name,
                    window = %period,
                    with = %needed,
                    "not rated: its contract or subjects were changed, and the other period has some of its usage; rate the range of both"
                );
            }
            candidates.retain(|(candidate, _)| *candidate != period);
            held.push(period);
        }
    }
}

/// Billing periods of a rule that are due and are held, since a published period has some of their usage.
pub(super) fn held_periods(
    state: &EngineState,
    reference: &ReferenceData,
    moved: &MovedSubjects,
    rule: &Rule,
    clock: i64,
) -> Result<Vec<RuleWindow>, WindowError> {
    let to = clock.max(state.watermark.unwrap_or(clock));
    let mut due: Vec<(RuleWindow, &str)> = Vec::new();
    for rated in rule.rated_between(reference, rule.options.effective_from, to)? {
        if state.finalized.get(&rule.name, &rated).is_none() && is_due(state, rule, &rated, clock) {
            due.push((rated, WindowTask::CLOSED));
        }
    }
    let free: BTreeSet<RuleWindow> = without_held(state, moved, rule, due.clone()).into_iter().map(|(rated, _)| rated).collect();
    Ok(due.into_iter().map(|(rated, _)| rated).filter(|rated| !free.contains(rated)).collect())
}

/// Adds the published windows that read re-rated ones: of other rules those around or, where they look back, after them, and
/// the later ones of a rule that looks back itself. A version that is no longer in the project reads with the windows that it
/// published.
pub(super) fn add_readers(
    state: &EngineState,
    (project, former): (&RuleProject, &[Rule]),
    tasks: &mut Vec<WindowTask>,
) -> Result<(), WindowError> {
    loop {
        let before = tasks.len();
        let of_project = project.rules.iter().map(|rule| (rule, true));
        for (rule, is_present) in of_project.chain(former.iter().map(|rule| (rule, false))) {
            let is_its_own = |range: &&Finalized| range.published && (is_present || range.rule_version == rule.version);
            let reads = |name: &str| {
                rule.upstream.iter().chain(&rule.earlier).any(|read| read == name) || (rule.reach == Reach::Onward && rule.name == name)
            };
            let changed: Vec<Window> =
                tasks.iter().filter(|task| task.cause == "re-rate" && reads(&task.rule)).map(|task| task.window.window).collect();
            let ends = state.finalized.of_rule(&rule.name).filter(|range| range.published).map(|range| range.end);
            let (Some(from), Some(to)) = (changed.iter().map(|window| window.start).min(), ends.max()) else { continue };
            for rated in rule.rated_between(&project.reference, from, to)? {
                let around = |window: &Window| rated.window.start <= window.start && window.end <= rated.window.end;
                let after = |window: &Window| rule.reach == Reach::Onward && window.start <= rated.window.start;
                let is_read = changed.iter().any(|window| around(window) || after(window));
                let is_known = tasks.iter().any(|task| task.rule == rule.name && task.window == rated);
                if is_read
                    && !is_known
                    && let Some(range) = state.finalized.get(&rule.name, &rated).filter(is_its_own)
                {
                    // Its own usage stays at the prices that it was published with.
                    tasks.push(WindowTask { cause: "re-rate".to_owned(), ..late_task(range, rated) });
                }
            }
        }
        if tasks.len() == before {
            return Ok(());
        }
    }
}

/// Published billing periods that their contract does not have any more: re-rating takes their charges back.
fn stale_periods(state: &EngineState, rule: &Rule, reference: &ReferenceData, from: i64, to: i64) -> Result<Vec<RuleWindow>, WindowError> {
    let mut stale = Vec::new();
    for range in state.finalized.of_rule(&rule.name).filter(|range| range.published && rule.in_force_at(range.start)) {
        let Some(contract) = &range.contract_id else { continue };
        let window = Window { start: range.start, end: range.end };
        let rated = RuleWindow { window, contract_id: Some(contract.clone()) };
        if from <= window.start && window.end <= to && !is_current(reference, &rated)? {
            stale.push(rated);
        }
    }
    Ok(stale)
}

/// Takes out open windows that their rule or contract cuts differently by now; their usage is in other windows.
pub(super) fn drop_strange(state: &mut EngineState, project: &RuleProject) -> Result<(), WindowError> {
    let mut kept = Vec::with_capacity(state.open.len());
    for open in std::mem::take(&mut state.open) {
        let window = open.window.window;
        let rule = project.rules.iter().find(|rule| rule.name == open.rule && rule.in_force_at(window.start));
        let is_cut_so = match rule.map(|rule| &rule.options.window) {
            None => true,
            Some(WindowSpec::BillingPeriod) => open.window.contract_id.is_some() && is_current(&project.reference, &open.window)?,
            Some(spec) => open.window.contract_id.is_none() && spec.window_of(window.start)? == window,
        };
        if is_cut_so {
            kept.push(open);
        }
    }
    state.open = kept;
    Ok(())
}

/// Whether a billing period is one that its contract has by this reference data; other windows always are.
pub(super) fn is_current(reference: &ReferenceData, rated: &RuleWindow) -> Result<bool, WindowError> {
    match (&rated.contract_id, reference.billing_periods()) {
        (None, _) => Ok(true),
        (Some(_), None) => Ok(false),
        (Some(contract), Some(periods)) => Ok(periods.period_of(contract, rated.window.start)? == Some(rated.window)),
    }
}

/// Whether the watermark, or the clock, has passed the window's end and grace. Usage that arrived after that as a
/// whole gives the window a new deadline, from its first ingest.
fn is_due(state: &EngineState, rule: &Rule, rated: &RuleWindow, clock: i64) -> bool {
    let deadline = rated.window.end.saturating_add(rule.options.grace);
    let by_watermark = state.watermark.is_some_and(|watermark| watermark >= deadline);
    let late_as_a_whole = open_window(state, rule, rated).is_some_and(|open| open.late_as_a_whole);
    (by_watermark && !late_as_a_whole) || clock >= clock_deadline(state, rule, rated)
}

/// When a window becomes due by the clock.
fn clock_deadline(state: &EngineState, rule: &Rule, rated: &RuleWindow) -> i64 {
    let deadline = rated.window.end.saturating_add(rule.options.grace);
    match open_window(state, rule, rated) {
        Some(open) if open.first_ingest > deadline => open.first_ingest.saturating_add(rule.options.grace),
        _ => deadline,
    }
}

fn open_window<'s>(state: &'s EngineState, rule: &Rule, rated: &RuleWindow) -> Option<&'s OpenWindow> {
    state.open.iter().find(|open| open.rule == rule.name && open.window == *rated)
}

//! Unrated usage of published windows that present reference data rates: it is charged without anybody asking.
//!
//! A window is rated as a whole, and its versions move on: late usage and the audit go on from there. That is done only
//! where it charges the mended usage and nothing else, which two evaluations with present reference data tell. Without the
//! mended usage, whoever was charged in the window must be charged as is published; others may be charged only if they have
//! mended usage. Where more would change, the window waits, and a person decides.
//!
//! What was looked at is kept in the state: the reference data, and the position of the log. Usage that comes late into a
//! window that older reference data published is looked at after its epoch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::TableProvider;
use ratemill_rules::reference::Times;
use ratemill_rules::unrated::{Fate, NotAnalysed, Places};
use ratemill_rules::{Claims, Rule, RuleProject, RuleWindow};
use ratemill_schemas::{Window, time};
use serde::{Deserialize, Serialize};

use super::books::Grouped;
use super::changes::{EventId, without};
use super::due;
use super::manifest::{Manifest, WindowTask};
use super::rate::evaluate_apart;
use super::run::{EpochError, EpochReport, Epochs};
use super::state::EngineState;
use super::unrated::{Parts, PublishedGroup, Suspense, identity, subject_and_time};
use super::versions::reference_files;
use crate::lake::LakeError;
use crate::ledger::{in_force_only, net};

/// When looking failed, it is not tried again for so long.
const PAUSE: Duration = Duration::from_secs(600);

/// What has been looked at for unrated usage that is mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examined {
    /// With this reference data.
    pub reference_version: String,
    /// All usage before this position of the log.
    pub position: i64,
}

/// Whether published windows have to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Examine {
    /// All that is there has been looked at.
    Done,
    /// Something has changed since.
    Due,
    /// Not before this time.
    After(Instant),
}

/// What looking at published windows found.
#[derive(Debug, Default)]
struct Found {
    tasks: Vec<WindowTask>,
    /// Windows with mended usage that wait, since more than that would change.
    waiting: usize,
    /// Unrated events.
    unrated: u64,
    /// Whether windows were left out that are going to be rated with their older versions first.
    incomplete: bool,
}

/// Mended events by the window that they are charged in.
type Mended = BTreeMap<RuleWindow, Vec<EventId>>;

impl Epochs {
    /// Notes that an epoch rated late usage with older reference data than the present one.
    pub(super) fn note_examined(&mut self, manifest: &Manifest) {
        let present = self.project.reference.version();
        if manifest.tasks.iter().any(|task| task.is_late() && task.reference_version != present) {
            self.examine = Examine::Due;
        }
    }

    /// Notes that mended usage was not charged. Its window is tried again; late usage of that window takes the place of the
    /// attempt, and rates with the older reference data: then it has to be found once more.
    pub(super) fn look_again(&mut self, state: &mut EngineState) {
        state.examined = None;
        self.examine = Examine::After(Instant::now() + PAUSE);
    }

    /// Charges unrated usage of published windows that present reference data rates, by an epoch of its own, where nothing
    /// else would change. To be called when nothing of the log waits: after a start, after reference data was loaded anew,
    /// after an epoch. Where nothing has changed since the last time it does nothing.
    ///
    /// # Errors
    /// [`EpochError`] of the epoch. What fails while looking is logged, and tried again later.
    pub async fn rate_mended(&mut self) -> Result<Option<EpochReport>, EpochError> {
        let present = self.project.reference.version().to_owned();
        match self.examine {
            Examine::Done => {
                // Usage since then needed no look.
                if let Some(examined) = self.state.examined.as_mut().filter(|examined| examined.reference_version == present) {
                    examined.position = self.state.position;
                }
                return Ok(None);
            }
            Examine::After(instant) if Instant::now() < instant => return Ok(None),
            _ => {}
        }
        let known = self.state.examined.clone().filter(|examined| examined.reference_version == present);
        let is_older = self.state.finalized.iter().any(|range| range.published && range.reference_version != present);
        if !is_older || known.as_ref().is_some_and(|examined| examined.position >= self.state.position) {
            self.examine = Examine::Done;
            self.state.examined = Some(Examined { reference_version: present, position: self.state.position });
            return Ok(None);
        }
        let started = Instant::now();
        let found = match self.find_mended(known.map(|examined| examined.position)).await {
            Ok(found) => found,
            Err(EpochError::Lake(error @ (LakeError::Fenced { .. } | LakeError::Held(_)))) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "published windows were not searched for unrated usage that is mended; it is tried again");
                self.examine = Examine::After(Instant::now() + PAUSE);
                return Ok(None);
            }
        };
        #[allow(clippy::cast_precision_loss)]
        metrics::gauge!("ratemill_unrated_events").set(found.unrated as f64);
        tracing::info!(
            unrated = found.unrated,
            mended = found.tasks.len(),
            waiting = found.waiting,
            elapsed = ?started.elapsed(),
            "published windows were searched for unrated usage that present reference data rates"
        );
        // Windows that are left out have failed: at once they would be again.
        self.examine = if found.incomplete { Examine::After(Instant::now() + PAUSE) } else { Examine::Done };
        let mut state = self.state.clone();
        if !found.incomplete {
            state.examined = Some(Examined { reference_version: present, position: self.state.position });
        }
        if found.tasks.is_empty() {
            self.state.examined = state.examined;
            return Ok(None);
        }
        let manifest = self.manifest(self.state.position, time::now(), found.tasks, state);
        self.begin(manifest).await?;
        self.finish().await
    }

    fn suspense(&self) -> Suspense<'_> {
        Suspense { rating: self.rating(), changes: &self.changes, adopted: &self.adopted, state: &self.state }
    }

    /// Looks at usage of published windows from this position on.
    async fn find_mended(&self, from: Option<i64>) -> Result<Found, EpochError> {
        let suspense = self.suspense();
        let present = self.project.reference.version();
        let mut found = Found::default();
        for group in suspense.published().await? {
            let mut group = match group {
                Ok(group) if group.reference_version != present => group,
                Ok(_) => continue,
                Err(unknown) => {
                    tracing::warn!(rule = unknown.rule, version = unknown.version, reason = unknown.reason, "unrated usage is not known");
                    continue;
                }
            };
            self.keep_touched(&mut group).await?;
            let all = group.windows.len();
            let is_pending = |window: &RuleWindow| self.state.pending.iter().any(|task| task.rule == group.rule && task.window == *window);
            group.windows.retain(|window| !is_pending(window));
            found.incomplete |= group.windows.len() < all;
            if group.windows.is_empty() {
                continue;
            }
            if let Err(reason) = self.look_at(&suspense, &group, from, &mut found).await? {
                tracing::warn!(rule = group.rule, version = group.rule_version, %reason, "unrated usage is not known");
            }
        }
        let mut tasks = std::mem::take(&mut found.tasks);
        if !tasks.is_empty() {
            due::add_readers(&self.state, (&self.project, &self.former), &mut tasks)?;
            for task in &mut tasks {
                WindowTask::MENDED.clone_into(&mut task.cause);
            }
        }
        found.tasks = tasks;
        Ok(found)
    }

    /// Leaves out the windows for which present reference data are as those that published them.
    async fn keep_touched(&self, group: &mut PublishedGroup) -> Result<(), EpochError> {
        let files = reference_files(&self.lake, &group.reference_version).await?;
        let touched = match (files, group.rule()) {
            (Some(files), Ok(rule)) => self.project.touched(rule, &self.project.reference.changes_from(&files)),
            _ => Times::always(),
        };
        group.windows.retain(|window| touched.touch(window.window));
        Ok(())
    }

    async fn look_at(
        &self,
        suspense: &Suspense<'_>,
        group: &PublishedGroup,
        from: Option<i64>,
        found: &mut Found,
    ) -> Result<Result<(), NotAnalysed>, EpochError> {
        let rule = match group.rule() {
            Ok(rule) if rule.reads_usage => rule,
            Ok(_) => return Ok(Ok(())),
            Err(reason) => return Ok(Err(reason)),
        };
        let claims = match suspense.claims(&group.project, rule, Places::of(group.windows.clone())).await? {
            Ok(claims) => claims.since(from),
            Err(reason) => return Ok(Err(reason)),
        };
        let (project, now) = match suspense.claims_now(group).await? {
            Some(Ok(now)) => now,
            Some(Err(reason)) => return Ok(Err(reason)),
            None => return Ok(Ok(())),
        };
        let mended = match mended_of(&claims, &now, &mut found.unrated).await {
            Ok(mended) => mended,
            Err(reason) => return Ok(Err(reason)),
        };
        let Some(rule) = project.rule(&group.rule, &group.rule_version) else { return Ok(Ok(())) };
        let windows = self.whole(rule, &mended)?;
        found.waiting += mended.len() - windows.len();
        for window in self.unmixed(suspense, &project, rule, &windows, &mended, found).await? {
            found.tasks.push(WindowTask {
                rule: group.rule.clone(),
                rule_version: group.rule_version.clone(),
                reference_version: project.reference.version().to_owned(),
                window,
                cause: "re-rate".to_owned(),
            });
        }
        Ok(Ok(()))
    }

    /// Of windows with mended usage those that can be rated by themselves: their contract cuts them so still, and they
    /// share no usage with others.
    fn whole(&self, rule: &Rule, mended: &Mended) -> Result<Vec<RuleWindow>, EpochError> {
        let mut candidates = Vec::with_capacity(mended.len());
        for window in mended.keys() {
            if due::is_current(&self.project.reference, window)? {
                candidates.push((window.clone(), WindowTask::MENDED));
            }
        }
        Ok(due::without_held(&self.state, &self.moved, rule, candidates).into_iter().map(|(window, _)| window).collect())
    }

    /// Of these windows those in which present reference data change nothing but what mended usage does.
    async fn unmixed(
        &self,
        suspense: &Suspense<'_>,
        project: &Arc<RuleProject>,
        rule: &Rule,
        rated: &[RuleWindow],
        mended: &Mended,
        found: &mut Found,
    ) -> Result<Vec<RuleWindow>, EpochError> {
        let arrow = |source| EpochError::Arrow { epoch: self.last, source };
        if rated.is_empty() {
            return Ok(Vec::new());
        }
        let windows: Vec<Window> = rated.iter().map(|rated| rated.window).collect::<BTreeSet<_>>().into_iter().collect();
        let of_contracts = rated.iter().all(|rated| rated.contract_id.is_some());
        let usage = suspense.usage()?;
        let others = without(Arc::clone(&usage), mended.values().flatten())?;
        let evaluated = async |usage: Arc<dyn TableProvider>| -> Result<HashMap<Window, Grouped>, EpochError> {
            let evaluator = suspense.evaluator(project, rule, rated, usage).await?;
            let (charges, errors) = evaluate_apart(&evaluator, rule, &windows).await;
            for (_, error) in errors {
                tracing::warn!(%error, "unrated usage of this window is not charged, since present reference data do not rate it");
            }
            Ok(charges.iter().map(|(window, charges)| (*window, Grouped::of_window(charges, *window, of_contracts))).collect())
        };
        let with = evaluated(usage).await?;
        let without = evaluated(others).await?;
        let published = Grouped::by_window(self.rating().published(&rule.name, &windows).await?, of_contracts);
        let mut unmixed = Vec::new();
        for rated in rated {
            let (Some(with), Some(without)) = (with.get(&rated.window), without.get(&rated.window)) else {
                found.waiting += 1;
                continue;
            };
            let (with, without) = (with.rows_of(rated).map_err(arrow)?, without.rows_of(rated).map_err(arrow)?);
            let before = published.rows_of(rated).map_err(arrow)?;
            match mixed(&before, &without, &with).map_err(arrow)? {
                None => unmixed.push(rated.clone()),
                Some(other) => {
                    found.waiting += 1;
                    tracing::warn!(
                        rule = rule.name,
                        window = %rated,
                        customer = other,
                        "usage that was unrated is rated by present reference data, but they change charges of others in this published window, too: it waits for `ratemill apply`"
                    );
                }
            }
        }
        Ok(unmixed)
    }
}

/// Unrated events that present reference data rate, by the window that they are charged in by now.
async fn mended_of(claims: &Claims, now: &Claims, unrated: &mut u64) -> Result<Mended, NotAnalysed> {
    let mut mended = Mended::new();
    let mut parts = Parts::of(claims).await?;
    while let Some(events) = parts.next().await? {
        *unrated += events.num_rows() as u64;
        for (row, _) in now.fates(&events).await?.into_iter().enumerate().filter(|(_, fate)| *fate == Fate::Rated) {
            *unrated -= 1;
            let place = subject_and_time(&events, row).and_then(|(subject, time)| now.places().find(time, &subject));
            let window = place.and_then(|place| now.places().windows().get(usize::try_from(place).ok()?));
            if let Some((window, event)) = window.zip(identity(&events, row)) {
                mended.entry(window.clone()).or_default().push(EventId { source: event.source, id: event.id });
            }
        }
    }
    Ok(mended)
}

/// The customer of a charge that present reference data change, though not because of mended usage; `None` where all that
/// changes is of customers with mended usage.
fn mixed(published: &RecordBatch, without: &RecordBatch, with: &RecordBatch) -> Result<Option<String>, arrow::error::ArrowError> {
    let (rows_without, rows_with) = (rows(without)?, rows(with)?);
    let has_mended: BTreeSet<&str> = rows_without.symmetric_difference(&rows_with).map(|(customer, _)| customer.as_str()).collect();
    let before = in_force_only(published)?;
    let charged: BTreeSet<&str> =
        before.column_by_name("customer_id").map(|customers| customers.as_string::<i32>().iter().flatten().collect()).unwrap_or_default();
    let found = net::compare(published, without)?.into_iter().map(|difference| difference.customer_id);
    let mut others = found.filter(|customer| charged.contains(customer.as_str()) || !has_mended.contains(customer.as_str()));
    Ok(others.next())
}

/// Each charge as its customer and all of its columns.
fn rows(charges: &RecordBatch) -> Result<BTreeSet<(String, String)>, arrow::error::ArrowError> {
    let options = FormatOptions::default().with_null("null");
    let columns = charges.columns().iter().map(|column| ArrayFormatter::try_new(column, &options)).collect::<Result<Vec<_>, _>>()?;
    let customers = charges.column_by_name("customer_id").map(|customers| customers.as_string::<i32>());
    Ok((0..charges.num_rows())
        .map(|row| {
            let mut text = String::new();
            for column in &columns {
                let value = column.value(row).to_string();
                let _ = write!(text, "{}:{value};", value.len());
            }
            (customers.map_or_else(String::new, |customers| customers.value(row).to_owned()), text)
        })
        .collect())
}

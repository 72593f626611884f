//! Unrated usage: events that rules claim and nothing charges, and events that no rule claims, with the reason.
//!
//! Published windows are told with the versions that published them, others with the present ones. Nothing is kept of it:
//! the tables of the lake say it at any time.

mod tally;

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use datafusion::catalog::TableProvider;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use ratemill_rules::unrated::{ASTRAY, Fate, NotAnalysed, Places, Reason, unclaimed};
use ratemill_rules::{Claims, Evaluator, Rule, RuleProject, RuleWindow};
use ratemill_schemas::Window;
use serde::Serialize;

pub use tally::{EventExample, PlaceText, UnratedEvent, UnratedGroup};
pub(super) use tally::{identity, subject_and_time};

use super::audit::{LedgerAudit, windows_of};
use super::changes::Changes;
use super::rate::{Evaluated, Rating, closure};
use super::run::EpochError;
use super::state::EngineState;
use crate::adopted::Adopted;
use tally::{Group, Tally};

/// Unrated events whose reasons are asked for at once.
pub(super) const EVENTS_AT_ONCE: usize = 1 << 17;

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct UnratedQuestion {
    /// One rule; usage that no rule claims is left out then.
    pub rule: Option<String>,
    /// How many events are listed one by one.
    pub events_max: usize,
}

/// Claimed = rated + unrated, of one window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WindowBooks {
    /// The rule.
    pub rule: String,
    /// The window.
    #[serde(flatten)]
    pub place: PlaceText,
    /// Whether its charges are published.
    pub published: bool,
    /// Events that the rule claims.
    pub claimed: i64,
    /// Of them, those that are rated.
    pub rated: i64,
    /// The others.
    pub unrated: i64,
}

/// A rule of which it cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// The rule.
    pub rule: String,
    /// Its version.
    pub version: String,
    /// Why.
    pub reason: String,
}

/// Usage that nothing charges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UnratedReport {
    /// The last completed epoch, as of which everything was read.
    pub epoch: i64,
    /// Unrated events; one that several rules claim counts for each.
    pub events: u64,
    /// By rule, window, meter and reason.
    pub groups: Vec<UnratedGroup>,
    /// The events, as many as were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listed: Vec<UnratedEvent>,
    /// The books of every window in which the rule claims usage.
    pub books: Vec<WindowBooks>,
    /// Rules that are left out, since it cannot be told what they rate.
    pub not_analysed: Vec<Unknown>,
}

/// What telling reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspense<'e> {
    pub(super) rating: Rating<'e>,
    pub(super) changes: &'e Changes,
    pub(super) adopted: &'e Adopted,
    pub(super) state: &'e EngineState,
}

/// Published windows of one version of a rule and of the reference data.
#[derive(Debug)]
pub(super) struct PublishedGroup {
    pub(super) rule: String,
    pub(super) rule_version: String,
    pub(super) reference_version: String,
    pub(super) project: Arc<RuleProject>,
    pub(super) windows: Vec<RuleWindow>,
}

impl PublishedGroup {
    pub(super) fn rule(&self) -> Result<&Rule, NotAnalysed> {
        self.project.rule(&self.rule, &self.rule_version).ok_or_else(|| NotAnalysed::because("is not what its name in the lake says"))
    }
}

impl Suspense<'_> {
    /// Published windows by the versions that published them; a version that is not in the lake any more is returned as
    /// its message.
    pub(super) async fn published(&self) -> Result<Vec<Result<PublishedGroup, Unknown>>, EpochError> {
        let mut groups = Vec::new();
        for ((rule, rule_version, reference_version), ranges) in self.state.finalized.published_by_version() {
            let unknown = |reason: String| Unknown { rule: rule.clone(), version: rule_version.clone(), reason };
            let project = match self.rating.version(&rule, &rule_version, &reference_version).await {
                Ok(project) => project,
                Err(error @ EpochError::Version { .. }) => {
                    groups.push(Err(unknown(error.to_string())));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let windows = windows_of(&project, &rule, &rule_version, &ranges)?;
            let windows = windows.into_iter().collect();
            groups.push(Ok(PublishedGroup { rule, rule_version, reference_version, project, windows }));
        }
        Ok(groups)
    }

    pub(super) async fn evaluator(
        &self,
        project: &Arc<RuleProject>,
        rule: &Rule,
        windows: &[RuleWindow],
        usage: Arc<dyn TableProvider>,
    ) -> Result<Evaluator, EpochError> {
        let windows: Vec<Window> = windows.iter().map(|rated| rated.window).collect::<BTreeSet<_>>().into_iter().collect();
        let read = closure(project, rule);
        self.rating.evaluator(Arc::clone(project), usage, &read, &windows, self.state, &Evaluated::new()).await
    }

    /// Usage in force.
    pub(super) fn usage(&self) -> Result<Arc<dyn TableProvider>, EpochError> {
        Ok(self.changes.over(self.adopted.over(self.rating.tables.usage.provider()?))?)
    }

    /// What a version claims of these windows; windows of contracts hold the usage of contracts as they were, and that of
    /// subjects which have come to them since.
    pub(super) async fn claims(
        &self,
        project: &Arc<RuleProject>,
        rule: &Rule,
        places: Places,
    ) -> Result<Result<Claims, NotAnalysed>, EpochError> {
        let evaluator = self.evaluator(project, rule, places.windows(), self.usage()?).await?;
        Ok(Claims::of(&evaluator, rule, places.or_by(&project.reference).or_by(&self.rating.project.reference)).await)
    }

    /// Where a group's usage would be by present reference data, if that is not what published it.
    pub(super) async fn claims_now(
        &self,
        group: &PublishedGroup,
    ) -> Result<Option<Result<(Arc<RuleProject>, Claims), NotAnalysed>>, EpochError> {
        let present = self.rating.project.reference.version();
        if group.reference_version == present {
            return Ok(None);
        }
        let project = match self.rating.version(&group.rule, &group.rule_version, present).await {
            Ok(project) => project,
            Err(EpochError::Version { message, .. }) => return Ok(Some(Err(NotAnalysed::because(message)))),
            Err(error) => return Err(error),
        };
        let Some(rule) = project.rule(&group.rule, &group.rule_version) else {
            return Ok(Some(Err(NotAnalysed::because("is not what its name in the lake says"))));
        };
        let claims = self.claims(&project, rule, Places::of(group.windows.clone())).await?;
        Ok(Some(claims.map(|claims| (Arc::clone(&project), claims))))
    }
}

impl LedgerAudit {
    /// Usage that nothing charges, as of the last completed epoch.
    ///
    /// # Errors
    /// [`EpochError`] when the lake cannot be read.
    pub async fn unrated(&self, question: &UnratedQuestion) -> Result<UnratedReport, EpochError> {
        let mut report = UnratedReport { epoch: self.epoch(), ..UnratedReport::default() };
        let mut tally = Tally::new(question.events_max);
        let suspense = self.suspense();
        let wanted = |rule: &str| question.rule.as_ref().is_none_or(|wanted| wanted == rule);
        let mut former: Vec<Arc<RuleProject>> = Vec::new();
        for group in suspense.published().await? {
            match group {
                Ok(group) => {
                    if wanted(&group.rule) {
                        self.of_published(&group, &mut tally, &mut report).await?;
                    }
                    former.push(group.project);
                }
                Err(unknown) if wanted(&unknown.rule) => report.not_analysed.push(unknown),
                Err(_) => {}
            }
        }
        for rule in suspense.rating.project.rules.iter().filter(|rule| rule.reads_usage && wanted(&rule.name)) {
            self.of_open(rule, &former, &mut tally, &mut report).await?;
        }
        if question.rule.is_none() {
            self.of_no_rule(&mut tally, &mut report).await?;
        }
        (report.events, report.groups, report.listed) = tally.finish();
        report.books.sort_by(|a, b| (&a.rule, &a.place).cmp(&(&b.rule, &b.place)));
        report.not_analysed.sort_by(|a, b| (&a.rule, &a.version).cmp(&(&b.rule, &b.version)));
        report.not_analysed.dedup();
        Ok(report)
    }

    async fn of_published(&self, group: &PublishedGroup, tally: &mut Tally, report: &mut UnratedReport) -> Result<(), EpochError> {
        let suspense = self.suspense();
        let told = async {
            let rule = match group.rule() {
                Ok(rule) => rule,
                Err(reason) => return Ok(Err(reason)),
            };
            if !rule.reads_usage {
                return Ok(Ok(()));
            }
            let claims = match suspense.claims(&group.project, rule, Places::of(group.windows.clone())).await? {
                Ok(claims) => claims,
                Err(reason) => return Ok(Err(reason)),
            };
            let now = suspense.claims_now(group).await?.and_then(Result::ok).map(|(_, claims)| claims);
            Ok::<_, EpochError>(count(&claims, now.as_ref(), (&group.rule, true), tally, report).await)
        };
        if let Err(reason) = told.await? {
            report.not_analysed.push(Unknown { rule: group.rule.clone(), version: group.rule_version.clone(), reason: reason.to_string() });
        }
        Ok(())
    }

    /// Windows of a rule that are not published, and usage that belongs to none for want of a contract.
    async fn of_open(
        &self,
        rule: &Rule,
        former: &[Arc<RuleProject>],
        tally: &mut Tally,
        report: &mut UnratedReport,
    ) -> Result<(), EpochError> {
        let suspense = self.suspense();
        let (project, state) = (suspense.rating.project, suspense.state);
        let Some(latest) = state.inputs.values().filter_map(|input| input.time_max).chain(state.latest_event).max() else { return Ok(()) };
        let time =
            Window { start: rule.options.effective_from, end: latest.saturating_add(1).min(rule.options.effective_to.unwrap_or(i64::MAX)) };
        let mut windows = rule.rated_between(&project.reference, time.start, latest.saturating_add(1))?;
        windows.retain(|rated| state.finalized.get(&rule.name, rated).is_none_or(|range| !range.published));
        let mut places = Places::of(windows).or_by(&project.reference);
        if rule.options.window == ratemill_schemas::WindowSpec::BillingPeriod {
            // Usage of a contract that is published with it is in that contract's windows, whatever is known of it now.
            places = former.iter().fold(places.or_astray(time), |places, project| places.or_by(&project.reference));
        }
        let told = match suspense.claims(project, rule, places).await? {
            Ok(claims) => count(&claims, None, (&rule.name, false), tally, report).await,
            Err(reason) => Err(reason),
        };
        if let Err(reason) = told {
            report.not_analysed.push(Unknown { rule: rule.name.clone(), version: rule.version.clone(), reason: reason.to_string() });
        }
        Ok(())
    }

    async fn of_no_rule(&self, tally: &mut Tally, report: &mut UnratedReport) -> Result<(), EpochError> {
        let suspense = self.suspense();
        let rating = suspense.rating;
        let evaluator = Evaluator::new(Arc::clone(rating.runtime), rating.limits.clone(), Arc::clone(rating.project), suspense.usage()?);
        let told = async {
            let (mut stream, unknown) = unclaimed(&evaluator).await?;
            while let Some(events) = stream.try_next().await? {
                tally.add(&events, |_| Some(Group { reason: Reason::NoRule, ..Group::default() }));
            }
            Ok::<_, NotAnalysed>(unknown)
        };
        match told.await {
            Ok(unknown) => {
                for (rule, reason) in unknown {
                    let version = rating.project.rules.iter().find(|known| known.name == rule).map(|rule| rule.version.clone());
                    report.not_analysed.push(Unknown { rule, version: version.unwrap_or_default(), reason: reason.to_string() });
                }
            }
            Err(reason) => {
                report.not_analysed.push(Unknown { rule: String::new(), version: String::new(), reason: reason.to_string() });
            }
        }
        Ok(())
    }
}

/// Adds the unrated usage of these claims, and the books of their windows; `now` tells what present reference data would
/// rate of it.
async fn count(
    claims: &Claims,
    now: Option<&Claims>,
    (rule, published): (&str, bool),
    tally: &mut Tally,
    report: &mut UnratedReport,
) -> Result<(), NotAnalysed> {
    let mut unrated: std::collections::BTreeMap<i64, i64> = std::collections::BTreeMap::new();
    let mut parts = Parts::of(claims).await?;
    while let Some(events) = parts.next().await? {
        let fates = claims.fates(&events).await?;
        let later = match now {
            Some(now) => now.fates(&events).await?,
            None => Vec::new(),
        };
        let places = tally::places_of(&events);
        for place in &places {
            *unrated.entry(*place).or_default() += 1;
        }
        tally.add(&events, |row| {
            let Fate::Lost(reason) = fates[row] else { return None };
            Some(Group {
                rule: Some(rule.to_owned()),
                place: usize::try_from(places[row]).ok().and_then(|place| claims.places().windows().get(place)).cloned(),
                published: published && places[row] != ASTRAY,
                reason: claims.reason(reason).cloned().unwrap_or(Reason::NoRule),
                waits: later.get(row) == Some(&Fate::Rated),
            })
        });
    }
    for (place, counts) in claims.counts().await? {
        let window = usize::try_from(place).ok().and_then(|place| claims.places().windows().get(place));
        report.books.push(WindowBooks {
            rule: rule.to_owned(),
            place: PlaceText::of(window),
            published: published && place != ASTRAY,
            claimed: counts.claimed,
            rated: counts.rated,
            unrated: unrated.get(&place).copied().unwrap_or(0),
        });
    }
    Ok(())
}

/// Unrated events in batches of a size that is worth a query.
pub(super) struct Parts {
    stream: SendableRecordBatchStream,
    ended: bool,
}

impl Parts {
    pub(super) async fn of(claims: &Claims) -> Result<Self, NotAnalysed> {
        Ok(Self { stream: claims.unrated().await?, ended: false })
    }

    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>, NotAnalysed> {
        let (mut batches, mut rows) = (Vec::new(), 0);
        while !self.ended && rows < EVENTS_AT_ONCE {
            match self.stream.try_next().await? {
                Some(batch) => {
                    rows += batch.num_rows();
                    batches.push(batch);
                }
                None => self.ended = true,
            }
        }
        if rows == 0 {
            return Ok(None);
        }
        let schema = batches[0].schema();
        Ok(Some(concat_batches(&schema, &batches).map_err(|error| NotAnalysed::because(error.to_string()))?))
    }
}

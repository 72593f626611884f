//! Subjects that were moved to another contract after billing periods of theirs were published.
//!
//! A published period keeps its subjects, with the reference data that published it, until it is rated again. Until then
//! the usage of a subject that has another contract by now must not be charged by the new contract as well.

use std::collections::{BTreeSet, HashMap};

use ratemill_rules::{Diagnostics, ReferenceData, RuleProject, RuleWindow};
use ratemill_schemas::{BillingPeriods, MovedSubject, Window, time};

use super::finalized::{Finalized, FinalizedWindows};
use super::run::EpochError;
use super::state::EngineState;
use super::versions::reference_files;
use crate::lake::Lake;

/// Where subjects have another contract than by the reference data that published periods.
#[derive(Debug, Default)]
pub(super) struct MovedSubjects {
    moves: Vec<Move>,
    by_subject: HashMap<String, Vec<usize>>,
    by_contract: HashMap<String, Vec<usize>>,
}

#[derive(Debug)]
struct Move {
    /// The reference data that knew the subject at its former contract.
    reference_version: String,
    moved: MovedSubject,
}

impl Move {
    fn touches(&self, window: Window) -> bool {
        self.moved.from < window.end && window.start < self.moved.to
    }

    /// The part of the move that lies in `window`.
    fn within(&self, window: Window) -> Window {
        Window { start: self.moved.from.max(window.start), end: self.moved.to.min(window.end) }
    }

    /// The published periods of the former contract that knew the subject as it was before, in `window`.
    fn published<'f>(&'f self, finalized: &'f FinalizedWindows, rule: &str, window: Window) -> impl Iterator<Item = &'f Finalized> {
        let ranges = self.moved.before.as_deref().map_or(&[][..], |before| finalized.of_contract(rule, Some(before)));
        ranges.iter().filter(move |range| range.published && range.reference_version == self.reference_version && overlaps(range, window))
    }
}

fn overlaps(range: &Finalized, window: Window) -> bool {
    range.start < window.end && window.start < range.end
}

impl MovedSubjects {
    fn add(&mut self, reference_version: &str, found: Vec<MovedSubject>) {
        for moved in found {
            let index = self.moves.len();
            self.by_subject.entry(moved.subject.clone()).or_default().push(index);
            for contract in moved.before.iter().chain(&moved.now) {
                self.by_contract.entry(contract.clone()).or_default().push(index);
            }
            self.moves.push(Move { reference_version: reference_version.to_owned(), moved });
        }
    }

    fn of<'m>(&'m self, index: &'m HashMap<String, Vec<usize>>, key: &str) -> impl Iterator<Item = &'m Move> {
        index.get(key).into_iter().flatten().map(|index| &self.moves[*index])
    }

    /// The contract whose published period holds the usage of `subject` at `time`, though it has another one by now.
    pub(super) fn published_contract(&self, finalized: &FinalizedWindows, rule: &str, subject: &str, time: i64) -> Option<&str> {
        let instant = Window { start: time, end: time.saturating_add(1) };
        self.of(&self.by_subject, subject)
            .filter(|moved| moved.touches(instant))
            .find(|moved| moved.published(finalized, rule, instant).next().is_some())
            .and_then(|moved| moved.moved.before.as_deref())
    }

    /// The published periods that share usage with `rated` and must be rated in the same epoch, lest that usage is charged
    /// twice or not at all: those of a contract that a subject came from, and of one that it went to.
    pub(super) fn sharing(&self, finalized: &FinalizedWindows, rule: &str, rated: &RuleWindow) -> Vec<RuleWindow> {
        let Some(contract) = rated.contract_id.as_deref() else { return Vec::new() };
        let own = finalized.get(rule, rated).filter(|range| range.published);
        let mut sharing = Vec::new();
        for moved in self.of(&self.by_contract, contract).filter(|moved| moved.touches(rated.window)) {
            let part = moved.within(rated.window);
            if moved.moved.now.as_deref() == Some(contract) {
                sharing.extend(moved.published(finalized, rule, part).map(Finalized::rated));
            } else if own.is_some_and(|own| own.reference_version == moved.reference_version) {
                let ranges = moved.moved.now.as_deref().map_or(&[][..], |now| finalized.of_contract(rule, Some(now)));
                let unknowing = ranges.iter().filter(|range| range.published && overlaps(range, part) && self.is_unknown_to(range, moved));
                sharing.extend(unknowing.map(Finalized::rated));
            }
        }
        sharing
    }

    /// Whether usage leaves `rated`, which is published, for the other period: with a subject, or because it is cut anew.
    pub(super) fn goes_to(&self, finalized: &FinalizedWindows, rule: &str, rated: &RuleWindow, other: &RuleWindow) -> bool {
        let Some(contract) = rated.contract_id.as_deref() else { return false };
        let Some(own) = finalized.get(rule, rated).filter(|range| range.published) else { return false };
        if rated.contract_id == other.contract_id {
            return rated != other && overlaps(own, other.window);
        }
        self.of(&self.by_contract, contract).any(|moved| {
            moved.reference_version == own.reference_version
                && moved.moved.before.as_deref() == Some(contract)
                && moved.moved.now == other.contract_id
                && moved.touches(rated.window)
                && moved.within(rated.window).start < other.window.end
                && other.window.start < moved.within(rated.window).end
        })
    }

    /// Whether a published period of the new contract was rated before the subject came to it.
    fn is_unknown_to(&self, range: &Finalized, moved: &Move) -> bool {
        self.of(&self.by_subject, &moved.moved.subject).any(|other| {
            other.reference_version == range.reference_version
                && other.moved.now == moved.moved.now
                && other.touches(Window { start: moved.moved.from, end: moved.moved.to })
        })
    }
}

impl MovedSubjects {
    /// Compares the contracts of the reference data that published billing periods with those of `project`.
    pub(super) async fn load(lake: &Lake, state: &EngineState, project: &RuleProject) -> Result<Self, EpochError> {
        let mut found = Self::default();
        let none = BillingPeriods::default();
        let now = project.reference.billing_periods().map_or(&none, |periods| periods);
        let versions: BTreeSet<&str> = published_periods(state).map(|range| range.reference_version.as_str()).collect();
        for version in versions.into_iter().filter(|version| *version != project.reference.version()) {
            let Some(former) = former_periods(lake, version).await? else {
                tracing::error!(version, "reference data that published billing periods is not in the lake any more");
                continue;
            };
            found.add(version, now.moved_since(&former));
        }
        Ok(found)
    }

    /// Warns of what differs.
    pub(super) fn warn(&self, state: &EngineState) {
        for moved in &self.moves {
            let Some(range) = published_periods(state).find(|range| {
                range.reference_version == moved.reference_version
                    && (range.contract_id == moved.moved.before || range.contract_id == moved.moved.now)
                    && moved.touches(Window { start: range.start, end: range.end })
            }) else {
                continue;
            };
            let contract = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
            tracing::warn!(
                subject = moved.moved.subject,
                from = time::format_instant(moved.moved.from),
                contract = contract(&moved.moved.now),
                contract_when_published = contract(&moved.moved.before),
                rule = range.rule,
                window = %Window { start: range.start, end: range.end },
                "this subject has another contract than when the billing period was published; what it would be charged twice is held: `ratemill pending` shows the difference, `ratemill apply` posts it"
            );
        }
    }
}

fn published_periods(state: &EngineState) -> impl Iterator<Item = &Finalized> {
    state.finalized.iter().filter(|range| range.published && range.contract_id.is_some())
}

async fn former_periods(lake: &Lake, version: &str) -> Result<Option<BillingPeriods>, EpochError> {
    let Some(mut files) = reference_files(lake, version).await? else { return Ok(None) };
    files.retain(|(table, ..)| table == "contracts");
    let reference = ReferenceData::from_files(files, "lake", &mut Diagnostics::default());
    Ok(Some(reference.billing_periods().map(|periods| periods.as_ref().clone()).unwrap_or_default()))
}

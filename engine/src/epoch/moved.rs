//! Subjects that were moved to another contract after billing periods of theirs were published.
//!
//! A published period keeps its subjects, with the reference data that published it, until it is rated again. Until then
//! the usage of a subject that has another contract by now must not be charged by the new contract as well.

use std::collections::{BTreeSet, HashMap};

use ratemill_rules::reference::ReferenceFiles;
use ratemill_rules::{Diagnostics, ReferenceData, RuleWindow};
use ratemill_schemas::{BillingPeriods, MovedSubject, Window, time};

use super::finalized::{Finalized, FinalizedWindows};
use super::run::{EpochError, Epochs};
use super::versions::reference_file;

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

    /// The published periods of `contract` that knew the subject as it was before, and lie not wholly inside `span`.
    fn published<'f>(
        &'f self,
        finalized: &'f FinalizedWindows,
        rule: &str,
        contract: &str,
        span: Window,
    ) -> impl Iterator<Item = &'f Finalized> {
        finalized.of_contract(rule, Some(contract)).iter().filter(move |range| {
            range.published
                && range.reference_version == self.reference_version
                && self.touches(Window { start: range.start, end: range.end })
                && !(span.start <= range.start && range.end <= span.end)
        })
    }
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
        let nothing = Window { start: 0, end: 0 };
        self.of(&self.by_subject, subject).filter(|moved| moved.moved.from <= time && time < moved.moved.to).find_map(|moved| {
            let before = moved.moved.before.as_deref()?;
            let mut published = moved.published(finalized, rule, before, nothing);
            published.any(|range| range.start <= time && time < range.end).then_some(before)
        })
    }

    /// Whether rating a period would charge the usage of a moved subject twice, or not at all, because another contract's
    /// published period that it was in, or is in by now, is not rated again in the same epoch: `re_rated` is the range that is.
    pub(super) fn hold(&self, finalized: &FinalizedWindows, rule: &str, rated: &RuleWindow, re_rated: Window) -> bool {
        let Some(contract) = rated.contract_id.as_deref() else { return false };
        let own = finalized.get(rule, rated).filter(|range| range.published);
        self.of(&self.by_contract, contract).filter(|moved| moved.touches(rated.window)).any(|moved| {
            let MovedSubject { before, now, .. } = &moved.moved;
            if now.as_deref() == Some(contract) {
                before.as_deref().is_some_and(|before| moved.published(finalized, rule, before, re_rated).next().is_some())
            } else {
                own.is_some_and(|own| own.reference_version == moved.reference_version)
                    && now.as_deref().is_some_and(|now| {
                        let ranges = finalized.of_contract(rule, Some(now)).iter();
                        ranges.clone().any(|range| {
                            range.published
                                && moved.touches(Window { start: range.start, end: range.end })
                                && !(re_rated.start <= range.start && range.end <= re_rated.end)
                                && self.is_unknown_to(range, moved)
                        })
                    })
            }
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

impl Epochs {
    /// Compares the contracts of the reference data that published billing periods with today's, and warns of what differs.
    pub(super) async fn load_moved(&mut self) -> Result<(), EpochError> {
        let periods: Vec<&Finalized> = self.state.finalized.iter().filter(|range| range.published && range.contract_id.is_some()).collect();
        let versions: BTreeSet<&str> = periods.iter().map(|range| range.reference_version.as_str()).collect();
        let mut found = MovedSubjects::default();
        let none = BillingPeriods::default();
        let now = self.project.reference.billing_periods().map_or(&none, |periods| periods);
        for version in versions.into_iter().filter(|version| *version != self.project.reference.version()) {
            let Some(former) = self.former_periods(version).await? else {
                tracing::error!(version, "reference data that published billing periods is not in the lake any more");
                continue;
            };
            found.add(version, now.moved_since(&former));
        }
        for moved in &found.moves {
            let Some(range) = periods.iter().find(|range| {
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
                "this subject has another contract than when the billing period was published; what it would be charged twice is held until `ratemill rate --re-rate --from … --to …` over the periods of both contracts posts the difference"
            );
        }
        self.moved = found;
        Ok(())
    }

    async fn former_periods(&self, version: &str) -> Result<Option<BillingPeriods>, EpochError> {
        let name = reference_file(version);
        let Some(bytes) = self.lake.read(&name).await? else { return Ok(None) };
        let Ok(mut files) = serde_json::from_slice::<ReferenceFiles>(&bytes) else { return Ok(None) };
        files.retain(|(table, ..)| table == "contracts");
        let reference = ReferenceData::from_files(files, "lake", &mut Diagnostics::default());
        Ok(Some(reference.billing_periods().map(|periods| periods.as_ref().clone()).unwrap_or_default()))
    }
}

//! Unrated usage counted by rule, window, meter and reason.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, Int64Type, TimestampMicrosecondType};
use ratemill_rules::RuleWindow;
use ratemill_rules::unrated::{PLACE, Reason};
use ratemill_schemas::Decimal;
use ratemill_schemas::time::format_instant;
use serde::Serialize;

/// Examples of each group.
const EXAMPLES: usize = 3;
/// Distinct subjects that are counted exactly; of more, the number is an estimate with an error of about 3 %.
const SUBJECTS_EXACT: usize = 1024;

/// Where unrated usage belongs, as texts.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PlaceText {
    /// The window's first instant, RFC 3339; none where it belongs to no window.
    pub window_start: Option<String>,
    /// The first instant after it.
    pub window_end: Option<String>,
    /// The contract, where the window is a contract's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contract_id: Option<String>,
}

impl PlaceText {
    pub(super) fn of(rated: Option<&RuleWindow>) -> Self {
        Self {
            window_start: rated.map(|rated| format_instant(rated.window.start)),
            window_end: rated.map(|rated| format_instant(rated.window.end)),
            contract_id: rated.and_then(|rated| rated.contract_id.clone()),
        }
    }
}

/// An event by its identity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct EventExample {
    /// CloudEvents `source`.
    pub source: String,
    /// CloudEvents `id`.
    pub id: String,
}

/// Unrated events of one rule, window, meter and reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnratedGroup {
    /// The rule; none where no rule claims the usage.
    pub rule: Option<String>,
    /// The window.
    #[serde(flatten)]
    pub place: PlaceText,
    /// The meter.
    pub meter: String,
    /// What lost it, in words.
    pub reason: String,
    /// What lost it.
    pub lost_by: Reason,
    /// Whether charges of the window are published.
    pub published: bool,
    /// Whether present reference data would rate it, but would change other published charges, too: it waits
    /// for `ratemill apply`.
    pub waits: bool,
    /// How many events.
    pub events: u64,
    /// How many distinct subjects.
    pub subjects: u64,
    /// Whether that number is exact.
    pub subjects_exact: bool,
    /// The sum of their quantities; none where it does not fit.
    pub quantity: Option<String>,
    /// The earliest event time, RFC 3339.
    pub first_event: String,
    /// The latest.
    pub last_event: String,
    /// The earliest of them.
    pub examples: Vec<EventExample>,
}

/// One unrated event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnratedEvent {
    /// CloudEvents `source`.
    pub source: String,
    /// CloudEvents `id`.
    pub id: String,
    /// Who or what used it.
    pub subject: String,
    /// What was used.
    pub meter: String,
    /// When, RFC 3339.
    pub time: String,
    /// How much.
    pub quantity: String,
    /// The rule; none where no rule claims it.
    pub rule: Option<String>,
    /// What lost it, in words.
    pub reason: String,
}

/// What unrated events are counted by, beside their meter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub(super) rule: Option<String>,
    pub(super) place: Option<RuleWindow>,
    pub(super) published: bool,
    pub(super) reason: Reason,
    pub(super) waits: bool,
}

impl Default for Group {
    fn default() -> Self {
        Self { rule: None, place: None, published: false, reason: Reason::NoRule, waits: false }
    }
}

#[derive(Debug, Default)]
struct Sums {
    events: u64,
    subjects: Distinct,
    quantity: Option<Decimal>,
    overflown: bool,
    last: i64,
    /// The earliest events: time, source and id.
    first: BTreeSet<(i64, EventExample)>,
}

/// How many distinct texts there are, by the smallest of their hashes.
#[derive(Debug, Default)]
struct Distinct(BTreeSet<u64>);

impl Distinct {
    fn add(&mut self, text: &str) {
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        if self.0.len() <= SUBJECTS_EXACT || self.0.last().is_some_and(|last| hash < *last) {
            self.0.insert(hash);
            if self.0.len() > SUBJECTS_EXACT + 1 {
                self.0.pop_last();
            }
        }
    }

    /// The number, and whether it is exact.
    fn count(&self) -> (u64, bool) {
        match self.0.last() {
            Some(last) if self.0.len() > SUBJECTS_EXACT => {
                // So many hashes lie below the last of them, of all that there are.
                let estimate = ((SUBJECTS_EXACT as u128) << 64) / (u128::from(*last) + 1);
                (u64::try_from(estimate).unwrap_or(u64::MAX), false)
            }
            _ => (self.0.len() as u64, true),
        }
    }
}

/// Counts unrated events.
#[derive(Debug)]
pub(super) struct Tally {
    groups: BTreeMap<(Group, String), Sums>,
    listed: Vec<UnratedEvent>,
    events_max: usize,
}

impl Tally {
    pub(super) fn new(events_max: usize) -> Self {
        Self { groups: BTreeMap::new(), listed: Vec::new(), events_max }
    }

    /// Adds events, each to the group that `group` gives for its row.
    pub(super) fn add(&mut self, events: &RecordBatch, group: impl Fn(usize) -> Option<Group>) {
        let Some(columns) = Columns::of(events) else { return };
        for row in 0..events.num_rows() {
            let Some(group) = group(row) else { continue };
            let event = EventExample { source: columns.source.value(row).to_owned(), id: columns.id.value(row).to_owned() };
            let (time, meter) = (columns.times.value(row), columns.meter.value(row));
            let quantity = Decimal::from_raw(columns.quantity.value(row)).ok();
            if self.listed.len() < self.events_max {
                self.listed.push(UnratedEvent {
                    source: event.source.clone(),
                    id: event.id.clone(),
                    subject: columns.subject.value(row).to_owned(),
                    meter: meter.to_owned(),
                    time: format_instant(time),
                    quantity: quantity.map(|quantity| quantity.to_string()).unwrap_or_default(),
                    rule: group.rule.clone(),
                    reason: group.reason.to_string(),
                });
            }
            let sums = self.groups.entry((group, meter.to_owned())).or_default();
            sums.last = if sums.events == 0 { time } else { sums.last.max(time) };
            sums.events += 1;
            sums.subjects.add(columns.subject.value(row));
            let sum = sums.quantity.unwrap_or_default();
            sums.quantity = quantity.and_then(|quantity| sum.plus(quantity).ok());
            sums.overflown |= sums.quantity.is_none();
            sums.first.insert((time, event));
            if sums.first.len() > EXAMPLES {
                sums.first.pop_last();
            }
        }
    }

    /// The number of events, the groups in order, and the events that are listed.
    pub(super) fn finish(self) -> (u64, Vec<UnratedGroup>, Vec<UnratedEvent>) {
        let mut events = 0;
        let mut groups = Vec::with_capacity(self.groups.len());
        for ((group, meter), sums) in self.groups {
            events += sums.events;
            let (subjects, subjects_exact) = sums.subjects.count();
            groups.push(UnratedGroup {
                rule: group.rule,
                place: PlaceText::of(group.place.as_ref()),
                meter,
                reason: group.reason.to_string(),
                lost_by: group.reason,
                published: group.published,
                waits: group.waits,
                events: sums.events,
                subjects,
                subjects_exact,
                quantity: sums.quantity.filter(|_| !sums.overflown).map(|quantity| quantity.to_string()),
                first_event: sums.first.first().map(|(time, _)| format_instant(*time)).unwrap_or_default(),
                last_event: format_instant(sums.last),
                examples: sums.first.into_iter().map(|(_, event)| event).collect(),
            });
        }
        let mut listed = self.listed;
        listed.sort_by(|a, b| (&a.rule, &a.time, &a.source, &a.id).cmp(&(&b.rule, &b.time, &b.source, &b.id)));
        (events, groups, listed)
    }
}

/// The columns of usage that are counted.
struct Columns<'b> {
    source: &'b arrow::array::StringArray,
    id: &'b arrow::array::StringArray,
    meter: &'b arrow::array::StringArray,
    subject: &'b arrow::array::StringArray,
    times: &'b arrow::array::PrimitiveArray<TimestampMicrosecondType>,
    quantity: &'b arrow::array::PrimitiveArray<Decimal128Type>,
}

impl<'b> Columns<'b> {
    fn of(events: &'b RecordBatch) -> Option<Self> {
        let text = |name: &str| events.column_by_name(name)?.as_string_opt::<i32>();
        Some(Self {
            source: text("source")?,
            id: text("id")?,
            meter: text("meter")?,
            subject: text("subject")?,
            times: events.column_by_name("time")?.as_primitive_opt()?,
            quantity: events.column_by_name("quantity")?.as_primitive_opt()?,
        })
    }
}

/// Source and id of a row.
pub(crate) fn identity(events: &RecordBatch, row: usize) -> Option<EventExample> {
    let columns = Columns::of(events)?;
    Some(EventExample { source: columns.source.value(row).to_owned(), id: columns.id.value(row).to_owned() })
}

/// Subject and time of a row.
pub(crate) fn subject_and_time(events: &RecordBatch, row: usize) -> Option<(String, i64)> {
    let columns = Columns::of(events)?;
    Some((columns.subject.value(row).to_owned(), columns.times.value(row)))
}

/// The places of unrated events.
pub(super) fn places_of(events: &RecordBatch) -> Vec<i64> {
    let places = events.column_by_name(PLACE).and_then(|places| places.as_primitive_opt::<Int64Type>());
    places.map_or_else(|| vec![-1; events.num_rows()], |places| places.values().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_texts_are_counted_or_estimated() {
        let counted = |texts: u64| {
            let mut distinct = Distinct::default();
            for text in (0..texts).chain(0..texts / 2) {
                distinct.add(&format!("subject {text}"));
            }
            distinct.count()
        };
        assert_eq!([counted(0), counted(7), counted(1024)], [(0, true), (7, true), (1024, true)]);
        for texts in [2_000, 50_000, 400_000] {
            let (estimate, exact) = counted(texts);
            assert!(!exact && estimate.abs_diff(texts) * 10 < texts, "{estimate} of {texts}");
        }
    }
}

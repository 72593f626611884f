//! Billing periods: each contract's own months, from an anchor day in its zone.
//!
//! A contract's terms say from when to when which anchor and zone hold. Inside of them, months run from anchor day to
//! anchor day, cut to the month's length. Where terms begin or end (the contract starts, ends, or changes its anchor or
//! zone), the month is cut there: a stub period. Terms that meet and agree are one, so that a new price alone cuts
//! nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::tz::TimeZone;

use crate::time::format_instant;
use crate::windows::{Period, Window, WindowError};

/// One row of the contracts: what holds for one subject of a contract for a time.
#[derive(Debug, Clone)]
pub struct ContractTerms {
    /// The contract.
    pub contract_id: String,
    /// Whose usage it charges.
    pub subject: String,
    /// Day of the month on which periods begin, 1 to 31.
    pub anchor_day: i8,
    /// The zone whose days count, by its IANA name.
    pub timezone: String,
    /// First instant, µs UTC.
    pub from: i64,
    /// First instant after; `None` is open.
    pub to: Option<i64>,
}

/// The billing periods of all contracts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BillingPeriods {
    contracts: BTreeMap<String, Vec<Terms>>,
    subjects: HashMap<String, Vec<Span>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Terms {
    from: i64,
    to: i64,
    anchor_day: i8,
    timezone: String,
    zone: TimeZone,
}

#[derive(Debug, Clone, PartialEq)]
struct Span {
    from: i64,
    to: i64,
    contract_id: String,
}

/// A window of one contract.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BillingPeriod {
    /// When.
    pub window: Window,
    /// Whose.
    pub contract_id: String,
}

/// A subject that has another contract than it had before, for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedSubject {
    /// Whose usage it is about.
    pub subject: String,
    /// First instant, µs UTC.
    pub from: i64,
    /// First instant after.
    pub to: i64,
    /// The contract that it had; `None`: none.
    pub before: Option<String>,
    /// The contract that it has; `None`: none.
    pub now: Option<String>,
}

impl BillingPeriods {
    /// Joins the terms of each contract.
    ///
    /// # Errors
    /// A day that is no anchor, an unknown zone, two anchors or zones of one contract at one time, or two contracts of
    /// one subject at one time.
    pub fn new(rows: &[ContractTerms]) -> Result<Self, String> {
        let mut periods = Self::default();
        for row in rows {
            if !(1..=31).contains(&row.anchor_day) {
                return Err(format!("contract `{}`: anchor_day {} is no day of a month (1 to 31)", row.contract_id, row.anchor_day));
            }
            let zone = crate::windows::zone(&row.timezone).map_err(|error| format!("contract `{}`: {error}", row.contract_id))?;
            let to = row.to.unwrap_or(i64::MAX);
            let terms = Terms { from: row.from, to, anchor_day: row.anchor_day, timezone: row.timezone.clone(), zone };
            periods.contracts.entry(row.contract_id.clone()).or_default().push(terms);
            let span = Span { from: row.from, to, contract_id: row.contract_id.clone() };
            periods.subjects.entry(row.subject.clone()).or_default().push(span);
        }
        for (contract, terms) in &mut periods.contracts {
            *terms = joined(contract, std::mem::take(terms))?;
        }
        for (subject, spans) in &mut periods.subjects {
            spans.sort_by_key(|span| span.from);
            for pair in spans.windows(2) {
                if pair[1].from < pair[0].to {
                    return Err(format!(
                        "subject `{subject}` has two contracts at once from {}: `{}` and `{}`",
                        format_instant(pair[1].from),
                        pair[0].contract_id,
                        pair[1].contract_id
                    ));
                }
            }
        }
        Ok(periods)
    }

    /// The contract of `subject` at `time`, which is µs UTC.
    #[must_use]
    pub fn contract_of(&self, subject: &str, time: i64) -> Option<&str> {
        let spans = self.subjects.get(subject)?;
        let span = spans[..spans.partition_point(|span| span.from <= time)].last()?;
        (time < span.to).then_some(span.contract_id.as_str())
    }

    /// Where subjects have another contract than by `former`, by subject and time.
    #[must_use]
    pub fn moved_since(&self, former: &Self) -> Vec<MovedSubject> {
        let mut moved: Vec<MovedSubject> = Vec::new();
        let subjects: BTreeSet<&String> = self.subjects.keys().chain(former.subjects.keys()).collect();
        for subject in subjects {
            let both = [&self.subjects, &former.subjects].map(|spans| spans.get(subject).map_or(&[][..], Vec::as_slice));
            if both[0] == both[1] {
                continue;
            }
            let edges: BTreeSet<i64> = both.into_iter().flatten().flat_map(|span| [span.from, span.to]).collect();
            let edges: Vec<i64> = edges.into_iter().collect();
            let first = moved.len();
            for pair in edges.windows(2) {
                let (from, to) = (pair[0], pair[1]);
                let (before, now) = (former.contract_of(subject, from), self.contract_of(subject, from));
                if before == now {
                    continue;
                }
                match moved[first..].last_mut() {
                    Some(last) if last.to == from && last.before.as_deref() == before && last.now.as_deref() == now => last.to = to,
                    _ => moved.push(MovedSubject {
                        subject: subject.clone(),
                        from,
                        to,
                        before: before.map(str::to_owned),
                        now: now.map(str::to_owned),
                    }),
                }
            }
        }
        moved
    }

    /// Every subject, with each contract that it ever has.
    pub fn subjects(&self) -> impl Iterator<Item = (&str, &str)> {
        self.subjects.iter().flat_map(|(subject, spans)| spans.iter().map(|span| (subject.as_str(), span.contract_id.as_str())))
    }

    /// The subjects that belong to `contract` at `time`, which is µs UTC.
    pub fn subjects_at(&self, contract: &str, time: i64) -> impl Iterator<Item = &str> {
        self.spans_of(contract).filter(move |(_, from, to)| *from <= time && time < *to).map(|(subject, ..)| subject)
    }

    /// The times at which each subject belongs to `contract`: subject, first instant, first instant after.
    pub fn spans_of(&self, contract: &str) -> impl Iterator<Item = (&str, i64, i64)> {
        self.subjects.iter().flat_map(move |(subject, spans)| {
            spans.iter().filter(move |span| span.contract_id == contract).map(move |span| (subject.as_str(), span.from, span.to))
        })
    }

    /// The period of `contract` that holds `time`.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn period_of(&self, contract: &str, time: i64) -> Result<Option<Window>, WindowError> {
        let Some(terms) = self.contracts.get(contract).and_then(|terms| terms.iter().find(|terms| terms.from <= time && time < terms.to))
        else {
            return Ok(None);
        };
        terms.window_of(time).map(Some)
    }

    /// Every period of every contract that overlaps `[from, to)`, by time and contract.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn between(&self, from: i64, to: i64) -> Result<Vec<BillingPeriod>, WindowError> {
        let mut periods = BTreeSet::new();
        for (contract, all) in &self.contracts {
            for terms in all {
                let mut instant = terms.from.max(from);
                while instant < terms.to.min(to) {
                    let window = terms.window_of(instant)?;
                    periods.insert(BillingPeriod { window, contract_id: contract.clone() });
                    instant = window.end;
                }
            }
        }
        Ok(periods.into_iter().collect())
    }

    /// The windows that some contract has in `[from, to)`, each once.
    ///
    /// # Errors
    /// [`WindowError::OutOfRange`].
    pub fn windows_between(&self, from: i64, to: i64) -> Result<Vec<Window>, WindowError> {
        let mut windows: Vec<Window> = self.between(from, to)?.into_iter().map(|period| period.window).collect();
        windows.dedup();
        Ok(windows)
    }
}

impl Terms {
    fn window_of(&self, time: i64) -> Result<Window, WindowError> {
        let month =
            Period::Month.window_of(time, &self.zone, self.anchor_day).ok_or_else(|| WindowError::OutOfRange(format_instant(time)))?;
        Ok(Window { start: month.start.max(self.from), end: month.end.min(self.to) })
    }
}

/// One contract's terms in order, those that agree joined.
fn joined(contract: &str, mut rows: Vec<Terms>) -> Result<Vec<Terms>, String> {
    rows.sort_by_key(|terms| (terms.from, terms.to));
    let mut joined: Vec<Terms> = Vec::new();
    for row in rows {
        match joined.last_mut() {
            Some(last) if row.from <= last.to && row.anchor_day == last.anchor_day && row.timezone == last.timezone => {
                last.to = last.to.max(row.to);
            }
            Some(last) if row.from < last.to => {
                return Err(format!(
                    "contract `{contract}` has two billing periods at once from {}: day {} in {} and day {} in {}",
                    format_instant(row.from),
                    last.anchor_day,
                    last.timezone,
                    row.anchor_day,
                    row.timezone
                ));
            }
            _ => joined.push(row),
        }
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::time::parse_instant;

    fn row(contract: &str, subject: &str, anchor_day: i8, timezone: &str, from: &str, to: &str) -> ContractTerms {
        let instant = |text: &str| crate::windows::instant_of_day(text, timezone).unwrap();
        ContractTerms {
            contract_id: contract.to_owned(),
            subject: subject.to_owned(),
            anchor_day,
            timezone: timezone.to_owned(),
            from: instant(from),
            to: (!to.is_empty()).then(|| instant(to)),
        }
    }

    fn windows(rows: &[ContractTerms], until: &str) -> Vec<String> {
        let periods = BillingPeriods::new(rows).unwrap();
        let found = periods.between(i64::MIN, parse_instant(until).unwrap()).unwrap();
        found.iter().map(|period| format!("{} {}", period.contract_id, period.window)).collect()
    }

    #[test]
    fn periods_of_contracts() {
        // Month ends are cut, and come back when the month allows.
        assert_eq!(
            windows(&[row("a", "s", 31, "UTC", "2024-01-31", "")], "2024-04-01T00:00:00Z"),
            [
                "a 2024-01-31T00:00:00Z to 2024-02-29T00:00:00Z",
                "a 2024-02-29T00:00:00Z to 2024-03-31T00:00:00Z",
                "a 2024-03-31T00:00:00Z to 2024-04-30T00:00:00Z"
            ]
        );
        // Start and end make stubs; the end is outside.
        assert_eq!(
            windows(&[row("a", "s", 15, "UTC", "2024-01-20", "2024-03-01")], "2025-01-01T00:00:00Z"),
            ["a 2024-01-20T00:00:00Z to 2024-02-15T00:00:00Z", "a 2024-02-15T00:00:00Z to 2024-03-01T00:00:00Z"]
        );
        // A changed anchor cuts; a row that changes neither anchor nor zone does not.
        assert_eq!(
            windows(
                &[
                    row("a", "s", 1, "UTC", "2024-01-01", "2024-01-11"),
                    row("a", "s", 1, "UTC", "2024-01-11", "2024-02-01"),
                    row("a", "s", 10, "UTC", "2024-02-01", "2024-03-10"),
                ],
                "2025-01-01T00:00:00Z"
            ),
            [
                "a 2024-01-01T00:00:00Z to 2024-02-01T00:00:00Z",
                "a 2024-02-01T00:00:00Z to 2024-02-10T00:00:00Z",
                "a 2024-02-10T00:00:00Z to 2024-03-10T00:00:00Z"
            ]
        );
        // A changed zone: the stub ends at the first instant of the new zone's day.
        assert_eq!(
            windows(
                &[
                    row("a", "s", 1, "Europe/London", "2024-06-01", "2024-07-01"),
                    row("a", "s", 1, "America/New_York", "2024-06-30T23:00:00Z", "2024-08-01"),
                ],
                "2025-01-01T00:00:00Z"
            ),
            [
                "a 2024-05-31T23:00:00Z to 2024-06-30T23:00:00Z",
                "a 2024-06-30T23:00:00Z to 2024-07-01T04:00:00Z",
                "a 2024-07-01T04:00:00Z to 2024-08-01T04:00:00Z"
            ]
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for (rows, expected) in [
            (vec![row("a", "s", 1, "UTC", "2024-01-01", ""), row("b", "s", 1, "UTC", "2024-02-01", "")], "two contracts at once"),
            (vec![row("a", "s", 1, "UTC", "2024-01-01", ""), row("a", "t", 2, "UTC", "2024-02-01", "")], "two billing periods at once"),
            (vec![row("a", "s", 32, "UTC", "2024-01-01", "")], "is no day of a month"),
            (vec![row("a", "s", 1, "UTC", "2024-01-01", "2024-03-01"), row("a", "s", 1, "UTC", "2024-02-01", "")], "two contracts at once"),
        ] {
            let error = BillingPeriods::new(&rows).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(
            BillingPeriods::new(&[row("a", "s", 1, "UTC", "2024-01-01", "2024-02-01"), row("b", "s", 5, "UTC", "2024-02-01", "")]).is_ok()
        );
    }

    #[test]
    fn moved_subjects_are_found() {
        let periods = |rows: &[ContractTerms]| BillingPeriods::new(rows).unwrap();
        let former = periods(&[row("a", "s", 1, "UTC", "2024-01-01", ""), row("a", "t", 1, "UTC", "2024-01-01", "2024-03-01")]);
        let now = periods(&[
            row("a", "s", 5, "UTC", "2024-01-01", "2024-01-15"),
            row("b", "s", 1, "UTC", "2024-01-15", "2024-02-15"),
            row("b", "s", 1, "UTC", "2024-02-15", "2024-04-01"),
            row("a", "t", 5, "UTC", "2024-01-01", "2024-03-01"),
            row("b", "u", 1, "UTC", "2024-01-01", "2024-02-01"),
        ]);
        let instant = |text: &str| parse_instant(&format!("{text}T00:00:00Z")).unwrap();
        let moved = |subject: &str, from: i64, to: i64, before: Option<&str>, now: Option<&str>| MovedSubject {
            subject: subject.to_owned(),
            from,
            to,
            before: before.map(str::to_owned),
            now: now.map(str::to_owned),
        };
        // A changed anchor moves nobody.
        assert_eq!(
            now.moved_since(&former),
            [
                moved("s", instant("2024-01-15"), instant("2024-04-01"), Some("a"), Some("b")),
                moved("s", instant("2024-04-01"), i64::MAX, Some("a"), None),
                moved("u", instant("2024-01-01"), instant("2024-02-01"), None, Some("b")),
            ]
        );
        assert!(former.moved_since(&former).is_empty());
    }

    #[test]
    fn usage_finds_its_contract() {
        let rows = [row("a", "s", 1, "UTC", "2024-01-01", "2024-02-01"), row("b", "s", 5, "UTC", "2024-03-01", "")];
        let periods = BillingPeriods::new(&rows).unwrap();
        let at = |text: &str| periods.contract_of("s", parse_instant(text).unwrap());
        assert_eq!(at("2024-01-31T23:59:59.999999Z"), Some("a"));
        assert_eq!(at("2024-02-15T00:00:00Z"), None);
        assert_eq!(at("2024-03-01T00:00:00Z"), Some("b"));
        assert_eq!(at("2023-12-31T23:59:59Z"), None);
    }
}

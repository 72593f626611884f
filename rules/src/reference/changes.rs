//! How two versions of the reference data differ, and at which times: what lies outside of these is charged as before.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::error::ArrowError;
use arrow::row::{OwnedRow, RowConverter, SortField};
use ratemill_schemas::Window;

use super::{ReferenceData, ReferenceFiles, ReferenceTable};
use crate::diagnostics::Diagnostics;

/// All times.
const ALWAYS: Window = Window { start: i64::MIN, end: i64::MAX };

/// The times at which something differs: windows that do not touch, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times(Vec<Window>);

impl Times {
    /// All of them.
    #[must_use]
    pub fn always() -> Self {
        Self(vec![ALWAYS])
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some of them lie in `window`.
    #[must_use]
    pub fn touch(&self, window: Window) -> bool {
        let next = self.0.partition_point(|times| times.end <= window.start);
        self.0.get(next).is_some_and(|times| times.start < window.end)
    }

    /// These and others.
    pub(crate) fn add(&mut self, other: &Self) {
        let mut all: Vec<Window> = self.0.iter().chain(&other.0).copied().filter(|times| times.start < times.end).collect();
        all.sort_unstable();
        self.0.clear();
        for times in all {
            match self.0.last_mut() {
                Some(last) if times.start <= last.end => last.end = last.end.max(times.end),
                _ => self.0.push(times),
            }
        }
    }

    /// These, and whatever comes after the first of them.
    pub(crate) fn onward(self) -> Self {
        Self(self.0.first().map(|first| Window { end: i64::MAX, ..*first }).into_iter().collect())
    }
}

/// How a table differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChange {
    /// When a row is valid that the other version does not have, bounds included.
    pub(crate) rows: Times,
    /// When the rows that are valid differ in something but their bounds.
    pub(crate) contents: Times,
}

impl TableChange {
    fn always() -> Self {
        Self { rows: Times::always(), contents: Times::always() }
    }
}

/// The tables that differ, by name.
pub type TableChanges = BTreeMap<String, TableChange>;

impl ReferenceData {
    /// How the tables differ from `files`, those of another version: in declaration, rows, or in being there. Where rows have a
    /// validity, only the times at which they differ.
    #[must_use]
    pub fn changes_from(&self, files: &ReferenceFiles) -> TableChanges {
        let mut changes = TableChanges::new();
        for name in self.tables_unlike(files) {
            let other = files.iter().find(|(other, ..)| *other == name);
            let change = self.tables.get(&name).zip(other).and_then(|(own, other)| {
                let other = Self::from_files(vec![other.clone()], "lake", &mut Diagnostics::default());
                compare(own, other.table(&name)?)
            });
            changes.insert(name, change.unwrap_or_else(TableChange::always));
        }
        changes
    }
}

/// `None` where rows have no validity, or columns differ.
fn compare(one: &ReferenceTable, other: &ReferenceTable) -> Option<TableChange> {
    if one.declaration != other.declaration || !one.has_validity() {
        return None;
    }
    let bounds = ["valid_from", "valid_to"];
    let rows = differing(one, other, &[]).ok()??;
    let contents = differing(one, other, &bounds).ok()??;
    Some(TableChange { rows, contents })
}

/// When the valid rows differ in columns other than `left_out`.
fn differing(one: &ReferenceTable, other: &ReferenceTable, left_out: &[&str]) -> Result<Option<Times>, ArrowError> {
    let schema = one.schema();
    if schema != other.schema() {
        return Ok(None);
    }
    let wanted: Vec<usize> = (0..schema.fields().len()).filter(|index| !left_out.contains(&schema.field(*index).name().as_str())).collect();
    let fields = wanted.iter().map(|index| SortField::new(schema.field(*index).data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let mut counts: HashMap<OwnedRow, BTreeMap<i64, i64>> = HashMap::new();
    for (table, sign) in [(one, 1), (other, -1)] {
        let columns: Vec<ArrayRef> = wanted.iter().map(|index| table.batch.column(*index).clone()).collect();
        let rows = converter.convert_columns(&columns)?;
        let bound = |name: &str| table.batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
        let (Some(from), Some(to)) = (bound("valid_from"), bound("valid_to")) else { return Ok(None) };
        for row in 0..table.batch.num_rows() {
            let steps = counts.entry(rows.row(row).owned()).or_default();
            *steps.entry(if from.is_null(row) { i64::MIN } else { from.value(row) }).or_default() += sign;
            *steps.entry(if to.is_null(row) { i64::MAX } else { to.value(row) }).or_default() -= sign;
        }
    }
    let mut times = Vec::new();
    for steps in counts.into_values() {
        let (mut count, mut since) = (0, i64::MIN);
        for (at, step) in steps {
            if count != 0 {
                times.push(Window { start: since, end: at });
            }
            (count, since) = (count + step, at);
        }
    }
    let mut all = Times::default();
    all.add(&Times(times));
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ratemill_schemas::time::{format_instant, parse_instant};

    const DECLARED: &str = "[columns]\nplan = \"text\"\nprice = \"decimal\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n";

    fn files(rows: &str) -> ReferenceFiles {
        vec![("prices".to_owned(), DECLARED.to_owned(), format!("plan,price,valid_from,valid_to\n{rows}"))]
    }

    fn shown(times: &Times) -> String {
        let bound = |at: i64| if at == i64::MIN || at == i64::MAX { "…".to_owned() } else { format_instant(at)[..10].to_owned() };
        times.0.iter().map(|times| format!("{} {}", bound(times.start), bound(times.end))).collect::<Vec<_>>().join(", ")
    }

    fn check(before: &str, now: &str, rows: &str, contents: &str) {
        let mut diagnostics = Diagnostics::default();
        let data = ReferenceData::from_files(files(now), "project", &mut diagnostics);
        assert!(!diagnostics.has_errors(), "{diagnostics}");
        let changes = data.changes_from(&files(before));
        let change = changes.get("prices").cloned().unwrap_or(TableChange { rows: Times::default(), contents: Times::default() });
        assert_eq!((shown(&change.rows).as_str(), shown(&change.contents).as_str()), (rows, contents), "{before} to {now}");
    }

    #[test]
    fn only_times_at_which_rows_differ_count() {
        let one = "home,1,2026-01-01,\n";
        check(one, one, "", "");
        // A new price from July on: the old row ends, which is no difference of its own before July.
        check(one, "home,1,2026-01-01,2026-07-01\nhome,2,2026-07-01,\n", "2026-01-01 …", "2026-07-01 …");
        check(one, "home,1,2026-01-01,2026-07-01\nhome,1,2026-07-01,\n", "2026-01-01 …", "");
        check(one, "home,1,2026-01-01,\nsolar,1,2026-03-01,2026-05-01\n", "2026-03-01 2026-05-01", "2026-03-01 2026-05-01");
        check(one, "home,3,2026-01-01,\n", "2026-01-01 …", "2026-01-01 …");
        let two = "home,1,2026-01-01,2026-02-01\nhome,2,2026-03-01,2026-04-01\n";
        check(
            two,
            "home,1,2026-01-01,2026-02-10\nhome,2,2026-03-05,2026-04-01\n",
            "2026-01-01 2026-02-10, 2026-03-01 2026-04-01",
            "2026-02-01 2026-02-10, 2026-03-01 2026-03-05",
        );
    }

    #[test]
    fn what_has_no_validity_differs_always() {
        let mut diagnostics = Diagnostics::default();
        let data = ReferenceData::from_files(files("home,1,2026-01-01,\n"), "project", &mut diagnostics);
        assert_eq!(data.changes_from(&Vec::new()), BTreeMap::from([("prices".to_owned(), TableChange::always())]));
        let mut other = files("home,1,2026-01-01,\n");
        other[0].1.push_str("\n[lists]\n");
        assert_eq!(data.changes_from(&other), BTreeMap::from([("prices".to_owned(), TableChange::always())]));
    }

    #[test]
    fn times_touch_windows_that_they_overlap() {
        let at = |text: &str| parse_instant(text).unwrap();
        let window = |from: &str, to: &str| Window { start: at(from), end: at(to) };
        let mut times = Times(vec![window("2026-03-01T00:00:00Z", "2026-03-10T00:00:00Z")]);
        times.add(&Times(vec![
            window("2026-05-01T00:00:00Z", "2026-05-02T00:00:00Z"),
            window("2026-03-05T00:00:00Z", "2026-03-12T00:00:00Z"),
        ]));
        assert_eq!(shown(&times), "2026-03-01 2026-03-12, 2026-05-01 2026-05-02");
        let touched = |from: &str, to: &str| times.touch(window(from, to));
        assert!(touched("2026-03-11T00:00:00Z", "2026-04-01T00:00:00Z") && touched("2026-04-01T00:00:00Z", "2026-06-01T00:00:00Z"));
        assert!(!touched("2026-03-12T00:00:00Z", "2026-05-01T00:00:00Z") && !touched("2026-05-02T00:00:00Z", "2027-01-01T00:00:00Z"));
        assert_eq!(shown(&times.onward()), "2026-03-01 …");
        assert!(!Times::default().touch(ALWAYS) && Times::always().touch(window("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")));
    }
}

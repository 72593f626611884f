//! Which windows are finalized, and with which versions: ranges of each rule, and of each contract where windows are its own.

use std::collections::BTreeMap;

use ratemill_rules::RuleWindow;
use ratemill_schemas::Window;
use serde::{Deserialize, Serialize};

use super::manifest::WindowTask;

/// A range of windows of one rule that were finalized with the same versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finalized {
    /// The rule.
    pub rule: String,
    /// Its version.
    pub rule_version: String,
    /// The reference version.
    pub reference_version: String,
    /// Start of the first window.
    pub start: i64,
    /// End of the last window.
    pub end: i64,
    /// Whether anything was published; an empty window without usage may still get its original charges.
    pub published: bool,
    /// The contract, where it is one billing period and no range.
    #[serde(default)]
    pub contract_id: Option<String>,
}

impl Finalized {
    /// One window that is finalized.
    pub fn window(task: &WindowTask, published: bool) -> Self {
        Self {
            rule: task.rule.clone(),
            rule_version: task.rule_version.clone(),
            reference_version: task.reference_version.clone(),
            start: task.window.window.start,
            end: task.window.window.end,
            published,
            contract_id: task.window.contract_id.clone(),
        }
    }

    /// The billing period that it is, or all of its time.
    pub(super) fn rated(&self) -> RuleWindow {
        RuleWindow { window: Window { start: self.start, end: self.end }, contract_id: self.contract_id.clone() }
    }

    fn holds(&self, window: Window) -> bool {
        if self.contract_id.is_some() {
            self.start == window.start && self.end == window.end
        } else {
            self.start <= window.start && window.end <= self.end
        }
    }

    fn joins(&self, other: &Self) -> bool {
        self.contract_id.is_none()
            && self.rule_version == other.rule_version
            && self.reference_version == other.reference_version
            && self.published == other.published
    }
}

/// A rule, its version and the reference version.
type Versions = (String, String, String);

/// Finalized windows by rule and contract.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Finalized>", into = "Vec<Finalized>")]
pub struct FinalizedWindows {
    groups: BTreeMap<(String, Option<String>), Vec<Finalized>>,
}

impl From<Vec<Finalized>> for FinalizedWindows {
    fn from(ranges: Vec<Finalized>) -> Self {
        let mut groups: BTreeMap<(String, Option<String>), Vec<Finalized>> = BTreeMap::new();
        for range in ranges {
            groups.entry((range.rule.clone(), range.contract_id.clone())).or_default().push(range);
        }
        Self { groups }
    }
}

impl From<FinalizedWindows> for Vec<Finalized> {
    fn from(windows: FinalizedWindows) -> Self {
        windows.groups.into_values().flatten().collect()
    }
}

impl FinalizedWindows {
    /// All ranges.
    pub fn iter(&self) -> impl Iterator<Item = &Finalized> + Clone {
        self.groups.values().flatten()
    }

    /// Published ranges by what published them together.
    pub(super) fn published_by_version(&self) -> BTreeMap<Versions, Vec<RuleWindow>> {
        let mut ranges: BTreeMap<Versions, Vec<RuleWindow>> = BTreeMap::new();
        for range in self.iter().filter(|range| range.published) {
            let versions = (range.rule.clone(), range.rule_version.clone(), range.reference_version.clone());
            ranges.entry(versions).or_default().push(range.rated());
        }
        ranges
    }

    /// The ranges of a rule.
    pub fn of_rule(&self, rule: &str) -> impl Iterator<Item = &Finalized> + Clone {
        let rule = rule.to_owned();
        self.groups.range((rule.clone(), None)..).take_while(move |((name, _), _)| *name == rule).flat_map(|(_, ranges)| ranges)
    }

    /// The ranges of a rule and contract.
    pub(super) fn of_contract(&self, rule: &str, contract: Option<&str>) -> &[Finalized] {
        self.groups.get(&(rule.to_owned(), contract.map(str::to_owned))).map_or(&[], Vec::as_slice)
    }

    /// How a window of `rule` was finalized, if it was.
    #[must_use]
    pub fn get(&self, rule: &str, rated: &RuleWindow) -> Option<&Finalized> {
        self.of_contract(rule, rated.contract_id.as_deref()).iter().find(|range| range.holds(rated.window))
    }

    /// The published billing period of `contract` that holds `time`, however it was cut.
    #[must_use]
    pub fn published_period(&self, rule: &str, contract: &str, time: i64) -> Option<Window> {
        let mut ranges = self.of_contract(rule, Some(contract)).iter();
        let found = ranges.find(|range| range.published && range.start <= time && time < range.end);
        found.map(|range| Window { start: range.start, end: range.end })
    }

    /// The published billing periods of its contract that a period overlaps, because they were cut differently.
    pub(super) fn cut_differently(&self, rule: &str, rated: &RuleWindow) -> impl Iterator<Item = RuleWindow> {
        let ranges = if rated.contract_id.is_some() { self.of_contract(rule, rated.contract_id.as_deref()) } else { &[] };
        let window = rated.window;
        ranges
            .iter()
            .filter(move |range| range.published && !range.holds(window) && range.start < window.end && window.start < range.end)
            .map(Finalized::rated)
    }

    /// Adds a window in the place of what was known of it; ranges that touch are joined.
    pub fn insert(&mut self, new: Finalized) {
        let window = RuleWindow { window: Window { start: new.start, end: new.end }, contract_id: new.contract_id.clone() };
        self.remove(&new.rule, &window);
        let ranges = self.groups.entry((new.rule.clone(), new.contract_id.clone())).or_default();
        if let Some(before) = ranges.iter_mut().find(|range| range.joins(&new) && range.end == new.start) {
            before.end = new.end;
        } else if let Some(after) = ranges.iter_mut().find(|range| range.joins(&new) && range.start == new.end) {
            after.start = new.start;
        } else {
            ranges.push(new);
        }
    }

    /// Takes a window out.
    pub fn remove(&mut self, rule: &str, rated: &RuleWindow) {
        let Some(ranges) = self.groups.get_mut(&(rule.to_owned(), rated.contract_id.clone())) else { return };
        let Some(index) = ranges.iter().position(|range| range.holds(rated.window)) else { return };
        let window = rated.window;
        let range = ranges.remove(index);
        if range.start < window.start {
            ranges.push(Finalized { end: window.start, ..range.clone() });
        }
        if window.end < range.end {
            ranges.push(Finalized { start: window.end, ..range });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(contract: Option<&str>, start: i64, end: i64, published: bool) -> Finalized {
        Finalized {
            rule: "r".to_owned(),
            rule_version: "v".to_owned(),
            reference_version: "f".to_owned(),
            start,
            end,
            published,
            contract_id: contract.map(str::to_owned),
        }
    }

    fn window(contract: Option<&str>, start: i64, end: i64) -> RuleWindow {
        RuleWindow { window: Window { start, end }, contract_id: contract.map(str::to_owned) }
    }

    #[test]
    fn ranges_join_and_split() {
        let mut windows = FinalizedWindows::default();
        for start in 0..5 {
            windows.insert(range(None, start, start + 1, true));
        }
        assert_eq!(Vec::from(windows.clone()), [range(None, 0, 5, true)]);
        windows.insert(range(None, 2, 3, false));
        assert!(windows.get("r", &window(None, 2, 3)).is_some_and(|found| !found.published));
        assert!(windows.get("r", &window(None, 3, 4)).is_some_and(|found| found.published));
        assert!(windows.get("r", &window(None, 5, 6)).is_none());
        assert_eq!(windows.of_rule("r").count(), 3);
    }

    #[test]
    fn billing_periods_of_contracts_stay_apart() {
        let mut windows = FinalizedWindows::default();
        windows.insert(range(Some("a"), 0, 10, true));
        windows.insert(range(Some("a"), 10, 20, true));
        windows.insert(range(Some("b"), 5, 15, true));
        assert_eq!(windows.of_rule("r").count(), 3);
        assert!(windows.get("r", &window(Some("a"), 5, 15)).is_none());
        assert_eq!(windows.published_period("r", "a", 12), Some(Window { start: 10, end: 20 }));
        let cut = |contract, start, end| windows.cut_differently("r", &window(Some(contract), start, end)).count();
        assert_eq!([cut("a", 0, 7), cut("a", 5, 15), cut("a", 10, 20), cut("b", 15, 25)], [1, 2, 0, 0]);
        let text = serde_json::to_string(&windows).unwrap_or_default();
        assert_eq!(serde_json::from_str::<FinalizedWindows>(&text).ok(), Some(windows));
    }
}

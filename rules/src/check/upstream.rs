//! Rules over rules: windows of the rule that is read lie inside those of its reader.

use std::ops::ControlFlow;

use ratemill_schemas::WindowSpec;
use ratemill_schemas::windows::Period;
use sqlparser::ast::{ObjectName, Query, Spanned, Visit, Visitor};

use super::Reading;
use crate::options::OptionPlaces;
use crate::rule::Rule;
use crate::tree::single_name;

/// Checks what `written` reads of `rules`, which are checked already.
pub(crate) fn check(written: &Query, places: &OptionPlaces, rules: &[Rule], reading: &mut Reading<'_>) {
    let mut named = Named(Vec::new());
    let _ = written.visit(&mut named);
    let mut known: Vec<String> = Vec::new();
    for name in named.0 {
        let Some(rule) = single_name(&name) else { continue };
        if known.contains(&rule) {
            continue;
        }
        let mut begins = None;
        for version in rules.iter().filter(|other| other.name == rule) {
            let from = version.options.effective_from;
            begins = Some(begins.map_or(from, |begin: i64| begin.min(from)));
            if !lies_inside(&version.options.window, &reading.options.window) {
                let place = reading.source.of_span(name.span());
                let message = format!(
                    "windows of `{rule}` ({}, {}) do not lie inside those of this rule ({}, {})",
                    version.options.window_name, version.options.timezone, reading.options.window_name, reading.options.timezone
                );
                let help = format!("read a rule of the same or a shorter window in the same zone; earlier windows are earlier.{rule}");
                reading.error("upstream-window", place, message, &help);
                break;
            }
        }
        if let Some(begin) = begins.filter(|begin| *begin > reading.options.effective_from) {
            let place = places.value("effective_from");
            let message =
                format!("`{rule}` begins later, on {}: before that it has no charges", ratemill_schemas::time::format_instant(begin));
            reading.warn("upstream-effective", place, message, "begin this rule with it");
        }
        known.push(rule);
    }
}

struct Named(Vec<ObjectName>);

impl Visitor for Named {
    type Break = ();

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<()> {
        self.0.push(name.clone());
        ControlFlow::Continue(())
    }
}

/// Whether every window of `inner` lies inside one of `outer`.
fn lies_inside(inner: &WindowSpec, outer: &WindowSpec) -> bool {
    if inner == outer {
        return true;
    }
    match (inner, outer) {
        (WindowSpec::Fixed { length: inner }, WindowSpec::Fixed { length: outer }) => outer % inner == 0,
        // Windows of a length begin in UTC: whether local days do so, too, is a matter of the zone.
        (WindowSpec::Fixed { length }, WindowSpec::Calendar { .. }) => {
            let (from, to) = (1_767_225_600_000_000, 1_830_297_600_000_000);
            outer.windows_between(from, to).is_ok_and(|windows| windows.iter().all(|window| window.start % length == 0))
        }
        (
            WindowSpec::Calendar { period: inner, zone: inner_zone, anchor: inner_anchor },
            WindowSpec::Calendar { period: outer, zone: outer_zone, anchor: outer_anchor },
        ) => {
            let same_zone = inner_zone == outer_zone || inner_zone.iana_name() == outer_zone.iana_name();
            let fits = match (inner, outer) {
                (Period::Day, _) => true,
                (Period::Week, outer) => *outer == Period::Week,
                (Period::Month, Period::Month | Period::Quarter | Period::Year)
                | (Period::Quarter, Period::Quarter | Period::Year)
                | (Period::Year, Period::Year) => inner_anchor == outer_anchor,
                _ => false,
            };
            same_zone && fits
        }
        // The windows of contracts begin at local midnights of the contract's zone; only what is wholly inside is read.
        (WindowSpec::Fixed { .. } | WindowSpec::Calendar { period: Period::Day, .. }, WindowSpec::BillingPeriod) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn window(text: &str, zone: &str) -> WindowSpec {
        WindowSpec::parse(text, ratemill_schemas::windows::zone(zone).unwrap()).unwrap()
    }

    #[test]
    fn shorter_windows_lie_inside_longer_ones_of_the_same_zone() {
        let london = "Europe/London";
        for (inner, outer) in [
            ("day", "month"),
            ("month", "year"),
            ("month", "month"),
            ("15 minutes", "day"),
            ("hour", "month"),
            ("5 minutes", "hour"),
            ("day", "week"),
        ] {
            assert!(lies_inside(&window(inner, london), &window(outer, london)), "{inner} in {outer}");
        }
        for (inner, outer) in [("year", "month"), ("week", "month"), ("7 minutes", "hour"), ("day", "hour"), ("month", "week")] {
            assert!(!lies_inside(&window(inner, london), &window(outer, london)), "{inner} in {outer}");
        }
        assert!(!lies_inside(&window("day", "UTC"), &window("month", london)));
        // Days in Kolkata begin at half past.
        assert!(!lies_inside(&window("hour", "UTC"), &window("day", "Asia/Kolkata")));
        assert!(lies_inside(&window("30 minutes", "UTC"), &window("day", "Asia/Kolkata")));
        let anchored = window("month", london).anchored("15").unwrap();
        assert!(!lies_inside(&anchored, &window("month", london)));
        assert!(lies_inside(&window("day", london), &anchored));
    }
}

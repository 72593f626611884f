//! Which windows a test is about.

use std::collections::BTreeSet;

use ratemill_schemas::time::{format_instant, parse_instant};
use ratemill_schemas::windows::{self, WindowError};
use ratemill_schemas::{Window, WindowSpec};

use crate::reference::ReferenceData;
use crate::rule::Rule;

/// A window and the version of the rule that rates it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RatedWindow<'a> {
    pub(super) rule: &'a Rule,
    pub(super) window: Window,
}

/// The windows that `text` names: a month, day or year names the one that begins in it, else the one that it lies in;
/// an instant the one that holds it. In billing periods every contract has its own.
pub(super) fn named(versions: &[&Rule], text: &str, reference: &ReferenceData) -> Result<Vec<Window>, String> {
    let Some(rule) = versions.first() else { return Err("there is no rule".to_owned()) };
    let period = period_of(text, &rule.options.timezone)?;
    let windows = match &rule.options.window {
        WindowSpec::BillingPeriod => billing_periods(&period, reference),
        spec => one_window(spec, &period, text),
    }?;
    if windows.is_empty() {
        return Err(format!("no contract has a billing period in `{text}`"));
    }
    Ok(windows)
}

/// The windows that hold given usage, each with the version in force; where none is, the usage is not rated.
pub(super) fn of_usage<'a>(
    versions: &[&'a Rule],
    events: &[(String, i64)],
    reference: &ReferenceData,
) -> Result<Vec<RatedWindow<'a>>, String> {
    let Some(rule) = versions.first() else { return Ok(Vec::new()) };
    let mut windows = BTreeSet::new();
    for (subject, time) in events {
        windows.extend(rule.window_of(reference, subject, *time).map_err(|error| error.to_string())?);
    }
    Ok(windows.into_iter().filter_map(|window| in_force(versions, window)).collect())
}

/// The version that rates `window`.
pub(super) fn in_force<'a>(versions: &[&'a Rule], window: Window) -> Option<RatedWindow<'a>> {
    versions.iter().copied().find(|rule| rule.in_force_at(window.start)).map(|rule| RatedWindow { rule, window })
}

/// A named span, or an instant alone.
struct Period {
    from: i64,
    to: Option<i64>,
}

/// `2026`, `2026-09`, `2026-09-14` in `timezone`, or an instant.
fn period_of(text: &str, timezone: &str) -> Result<Period, String> {
    let (unit, first_day) = match text.len() {
        4 => ("year", format!("{text}-01-01")),
        7 => ("month", format!("{text}-01")),
        10 => ("day", text.to_owned()),
        _ => {
            let from = parse_instant(text).map_err(|_| not_a_window(text))?;
            return Ok(Period { from, to: None });
        }
    };
    let from = windows::instant_of_day(&first_day, timezone).map_err(|_| not_a_window(text))?;
    let zone = windows::zone(timezone).map_err(|error| error.to_string())?;
    let window = WindowSpec::parse(unit, zone).and_then(|spec| spec.window_of(from)).map_err(|error| error.to_string())?;
    Ok(Period { from, to: Some(window.end) })
}

fn not_a_window(text: &str) -> String {
    format!("`{text}` names no window; write a month like 2026-09, a day like 2026-09-14, a year, or an instant like 2026-09-14T10:00:00Z")
}

fn one_window(spec: &WindowSpec, period: &Period, text: &str) -> Result<Vec<Window>, String> {
    let window_of = |instant| spec.window_of(instant).map_err(|error: WindowError| error.to_string());
    let holding = window_of(period.from)?;
    let Some(to) = period.to else { return Ok(vec![holding]) };
    let beginning = if holding.start < period.from { window_of(holding.end)? } else { holding };
    if beginning.start >= to {
        return Ok(vec![holding]);
    }
    if beginning.end < to {
        let first = format_instant(beginning.start);
        return Err(format!("several windows begin in `{text}`; name one by its day or by an instant inside it, the first is {first}"));
    }
    Ok(vec![beginning])
}

fn billing_periods(period: &Period, reference: &ReferenceData) -> Result<Vec<Window>, String> {
    let Some(periods) = reference.billing_periods() else { return Ok(Vec::new()) };
    let between = |from, to| periods.windows_between(from, to).map_err(|error| error.to_string());
    if let Some(to) = period.to {
        let mut beginning = between(period.from, to)?;
        beginning.retain(|window| window.start >= period.from);
        if !beginning.is_empty() {
            return Ok(beginning);
        }
    }
    between(period.from, period.from + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(window: &str, anchor: Option<&str>, timezone: &str, text: &str, expected: &str) {
        let spec = WindowSpec::parse(window, windows::zone(timezone).unwrap()).unwrap();
        let spec = anchor.map_or_else(|| spec.clone(), |day| spec.clone().anchored(day).unwrap());
        let found = period_of(text, timezone).and_then(|period| one_window(&spec, &period, text));
        match found {
            Ok(windows) => assert_eq!(windows[0].to_string(), expected, "{text} of {window}"),
            Err(message) => assert!(message.contains(expected), "{text} of {window}: {message}"),
        }
    }

    #[test]
    fn windows_by_name() {
        check("month", None, "Europe/London", "2026-09", "2026-08-31T23:00:00Z to 2026-09-30T23:00:00Z");
        check("month", None, "Europe/London", "2026-09-14", "2026-08-31T23:00:00Z to 2026-09-30T23:00:00Z");
        check("month", None, "Europe/London", "2026-09-30T23:00:00Z", "2026-09-30T23:00:00Z to 2026-11-01T00:00:00Z");
        check("month", Some("15"), "UTC", "2026-09", "2026-09-15T00:00:00Z to 2026-10-15T00:00:00Z");
        check("month", Some("15"), "UTC", "2026-09-14", "2026-08-15T00:00:00Z to 2026-09-15T00:00:00Z");
        check("day", None, "UTC", "2026-09-14", "2026-09-14T00:00:00Z to 2026-09-15T00:00:00Z");
        check("quarter", None, "UTC", "2026-09", "2026-07-01T00:00:00Z to 2026-10-01T00:00:00Z");
        check("year", None, "UTC", "2026", "2026-01-01T00:00:00Z to 2027-01-01T00:00:00Z");
        check("week", None, "UTC", "2026-11-22", "2026-11-16T00:00:00Z to 2026-11-23T00:00:00Z");
        check("15 minutes", None, "UTC", "2026-09-14T10:14:59Z", "2026-09-14T10:00:00Z to 2026-09-14T10:15:00Z");
        check("day", None, "UTC", "2026-09", "several windows begin in `2026-09`");
        check("month", None, "UTC", "September", "`September` names no window");
        check("month", None, "UTC", "2026-13", "`2026-13` names no window");
    }
}

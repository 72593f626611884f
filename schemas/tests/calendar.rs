//! Windows against an independent calendar: `calendar.csv` is made by Python's zoneinfo (`tests/calendar/generate.py`).
#![allow(clippy::unwrap_used)]

use ratemill_schemas::time::parse_instant;
use ratemill_schemas::{BillingPeriods, ContractTerms, WindowSpec, windows};

#[test]
fn windows_agree_with_an_independent_calendar() {
    let table = include_str!("calendar.csv");
    let mut rows = 0;
    let mut wrong = Vec::new();
    for line in table.lines().filter(|line| !line.starts_with('#')).skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let [kind, zone, anchor, instant, start, end] = fields.as_slice() else { panic!("{line}") };
        let instant = parse_instant(instant).unwrap();
        let found = if *kind == "period" {
            let terms = ContractTerms {
                contract_id: "c".to_owned(),
                subject: "s".to_owned(),
                anchor_day: anchor.parse().unwrap(),
                timezone: (*zone).to_owned(),
                from: parse_instant("2000-01-01T00:00:00Z").unwrap(),
                to: None,
            };
            let anchored = WindowSpec::parse("month", windows::zone(zone).unwrap()).unwrap().anchored(anchor).unwrap();
            let period = BillingPeriods::new(&[terms]).unwrap().period_of("c", instant).unwrap().unwrap();
            assert_eq!(anchored.window_of(instant).unwrap(), period, "{line}");
            period
        } else {
            WindowSpec::parse(kind, windows::zone(zone).unwrap()).unwrap().window_of(instant).unwrap()
        };
        if found.start != parse_instant(start).unwrap() || found.end != parse_instant(end).unwrap() {
            wrong.push(format!("{line}: found {found}"));
        }
        rows += 1;
    }
    assert!(rows > 1_500, "{rows} rows");
    assert!(wrong.is_empty(), "{} of {rows} differ:\n{}", wrong.len(), wrong.join("\n"));
}

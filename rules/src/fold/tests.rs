#![allow(clippy::unwrap_used)]

mod benches;
mod earlier;
mod opening;
mod reads;
mod running;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Date32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use datafusion::datasource::MemTable;
use ratemill_schemas::time::{DAY, day_of};
use ratemill_schemas::usage::{Dimension, DimensionType, DimensionValue};
use ratemill_schemas::{Decimal, EventHasher, UsageBatchBuilder, UsageEvent, UsageSchema, Window};

use super::*;
use crate::diagnostics::Diagnostics;
use crate::evaluate::{Mode, WindowCharges};
use crate::reference::{ReferenceData, TableChanges};
use crate::session::runtime;

/// Rules of the examples that are not folded, and why.
const NOT_FOLDED: [(&str, &str); 0] = [];

/// What the states of the examples keep that grows with usage.
const KEPT: [(&str, &str); 2] = [
    ("cloud-metering/storage", "every value of weighted, the last event of each subject, meter"),
    ("electricity-utility/energy_by_register", "every value of register_usage, the last event of each subject, meter"),
];

fn limits() -> SessionLimits {
    SessionLimits { partitions: 1, ..SessionLimits::default() }
}

async fn fold(project: &Arc<RuleProject>, rule: &str) -> Result<Arc<Fold>, NotFoldable> {
    let rule = project.rules.iter().find(|known| known.name == rule).unwrap();
    Fold::of(runtime(&limits()).unwrap(), limits(), Arc::clone(project), rule).await.map(Arc::new)
}

async fn project(rules: &[(&str, &str)]) -> Arc<RuleProject> {
    let contracts = "contract_id,subject,customer_id,plan,valid_from,valid_to\n\
        K1,s1,C1,P1,2025-01-01,2026-03-15\nK2,s1,C2,P2,2026-03-15,\nK3,s2,C3,P1,2025-01-01,\n";
    let declared = "key = ['subject']\n[columns]\ncontract_id = 'text'\nsubject = 'text'\ncustomer_id = 'text'\nplan = 'text'\n\
        valid_from = 'date'\nvalid_to = 'date?'\n";
    let labels = ("labels".to_owned(), "key = []\n[columns]\nsubject = 'text'\n".to_owned(), "subject\ns1\ns1\ns2\n".to_owned());
    let mut diagnostics = Diagnostics::default();
    let files = vec![("contracts".to_owned(), declared.to_owned(), contracts.to_owned()), labels];
    let reference = ReferenceData::from_files(files, "project", &mut diagnostics);
    let files = rules.iter().map(|(name, query)| {
        let (options, query) = query.split_once(" AS ").unwrap();
        let options = format!("window = 'month', effective_from = '2026-01-01'{options}");
        (format!("{name}.sql"), format!("CREATE MATERIALIZED VIEW {name} WITH ({options}) AS {query}"))
    });
    let checked = RuleProject::check(files.collect(), reference, usage_schema(&[]), diagnostics).await;
    Arc::new(checked.unwrap_or_else(|found| panic!("{found}")).0)
}

fn usage_schema(dimensions: &[String]) -> Arc<UsageSchema> {
    let dimensions = dimensions.iter().map(|name| Dimension { name: name.clone(), kind: DimensionType::Text });
    Arc::new(UsageSchema::new(dimensions.collect()))
}

struct Event {
    meter: String,
    subject: String,
    time: i64,
    quantity: String,
    end: Option<i64>,
    dimensions: Vec<String>,
}

fn instant(text: &str) -> i64 {
    ratemill_schemas::time::parse_instant(text).unwrap()
}

/// `subject meter time quantity`, one event in a line.
fn events(lines: &str) -> Vec<Event> {
    let event = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (time, dimensions) = (instant(words[2]), Vec::new());
        Event { subject: words[0].into(), meter: words[1].into(), time, quantity: words[3].into(), end: None, dimensions }
    };
    lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(event).collect()
}

/// Usage as connectors decode it; `first` is the number of the first event.
fn decoded(schema: &UsageSchema, events: &[Event], first: usize) -> RecordBatch {
    let mut builder = UsageBatchBuilder::new(schema, EventHasher::new([1, 2]), i64::MAX, events.len());
    for (number, event) in events.iter().enumerate() {
        let dimensions: Vec<DimensionValue<'_>> = event.dimensions.iter().map(|text| DimensionValue::Text(text.into())).collect();
        let event = UsageEvent {
            source: "test",
            id: &format!("e{}", first + number),
            meter: &event.meter,
            subject: &event.subject,
            time: event.time,
            quantity: event.quantity.parse::<Decimal>().unwrap(),
            end: event.end,
            dimensions: &dimensions,
            attributes: &[],
        };
        builder.append(&event).unwrap();
    }
    builder.finish().unwrap().0
}

fn stored(schema: &UsageSchema, decoded: &RecordBatch) -> RecordBatch {
    let times = decoded.column_by_name("time").unwrap().as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    let mut columns = decoded.columns().to_vec();
    columns.push(Arc::new(TimestampMicrosecondArray::from_iter_values(times.values().iter().copied()).with_timezone("UTC")) as ArrayRef);
    columns.push(Arc::new((0..times.values().len() as i64).collect::<Int64Array>()));
    columns.push(Arc::new(Date32Array::from_iter_values(times.values().iter().map(|time| day_of(*time)))));
    RecordBatch::try_new(Arc::clone(schema.stored()), columns).unwrap()
}

fn evaluator(project: &Arc<RuleProject>, usage: &RecordBatch) -> Evaluator {
    let usage = MemTable::try_new(Arc::clone(project.usage.stored()), vec![vec![stored(&project.usage, usage)]]).unwrap();
    Evaluator::new(runtime(&limits()).unwrap(), limits(), Arc::clone(project), Arc::new(usage)).with_mode(Mode::OneByOne)
}

/// `customer: amount`, and further columns, of each charge, in order.
fn shown(charges: &Result<Vec<WindowCharges>, RateError>) -> String {
    let charges = match charges {
        Ok(charges) => charges,
        Err(error) => return error.to_string(),
    };
    let mut lines = Vec::new();
    for charges in charges {
        let rows: Vec<String> = (0..charges.charges.num_rows())
            .map(|row| {
                let cell = |column: usize| arrow::util::display::array_value_to_string(charges.charges.column(column), row).unwrap();
                let further: Vec<String> = (9..charges.charges.num_columns()).map(|column| format!(" {}", cell(column))).collect();
                format!("{}: {}{}", cell(0), cell(4).parse::<Decimal>().unwrap(), further.concat())
            })
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        lines.push(rows.join(", "));
    }
    lines.join(" | ")
}

fn months(from: &str, to: &str, project: &RuleProject, rule: &str) -> Vec<Window> {
    let rule = project.rules.iter().find(|known| known.name == rule).unwrap();
    rule.windows_between(&project.reference, instant(from), instant(to)).unwrap()
}

const BY_CUSTOMER: &str = " AS SELECT c.customer_id, 'Calls' AS item, sum(u.quantity) AS amount, 'EUR' AS currency FROM usage u \
    JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject WHERE u.meter = 'call' GROUP BY c.customer_id";

#[tokio::test]
async fn events_are_folded_into_their_windows() {
    let project = project(&[("rated", BY_CUSTOMER)]).await;
    let fold = fold(&project, "rated").await.unwrap();
    let windows = months("2026-03-01T00:00:00Z", "2026-05-01T00:00:00Z", &project, "rated");
    let mut state = fold.state();
    let none = evaluator(&project, &decoded(&project.usage, &[], 0));
    assert_eq!(shown(&state.evaluate(&windows, &none).await), " | ");
    let open = fold.open(&windows).unwrap();
    for (number, line) in [
        "s1 call 2026-03-01T00:00:00Z 1",
        "s1 call 2026-03-14T23:59:59Z 2",
        "s1 call 2026-03-15T00:00:00Z 4",
        "s1 data 2026-03-15T00:00:00Z 1000",
        "s1 call 2026-02-28T23:59:59Z 1000",
        "s1 call 2026-05-01T00:00:00Z 1000",
        "s2 call 2026-04-01T00:00:00Z 8",
        "nobody call 2026-04-01T00:00:00Z 1000",
    ]
    .into_iter()
    .enumerate()
    {
        state.fold(&decoded(&project.usage, &events(line), number), &open).await.unwrap();
    }
    assert_eq!(shown(&state.evaluate(&windows, &none).await), "C1: 3, C2: 4 | C3: 8");
    assert_eq!(state.windows(), windows);
    assert!(state.rows() < 20 && state.size() > 0);
    // What comes after the cut waits in a state of its own.
    let mut delta = fold.state();
    delta.fold(&decoded(&project.usage, &events("s2 call 2026-04-02T00:00:00Z 16"), 9), &open).await.unwrap();
    assert_eq!(shown(&state.evaluate(&windows, &none).await), "C1: 3, C2: 4 | C3: 8");
    assert_eq!(shown(&delta.evaluate(&windows, &none).await), " | C3: 16");
    state.merge(delta).await.unwrap();
    assert_eq!(shown(&state.evaluate(&windows, &none).await), "C1: 3, C2: 4 | C3: 24");
    state.drop_windows(&windows[..1]);
    assert_eq!((shown(&state.evaluate(&windows[1..], &none).await), state.windows()), ("C3: 24".to_owned(), windows[1..].to_vec()));
}

#[tokio::test]
async fn an_event_that_fails_stops_its_window_only() {
    let failing = " AS SELECT u.subject AS customer_id, 'Calls' AS item, sum(1 / u.quantity) AS amount, 'EUR' AS currency FROM usage u \
        GROUP BY u.subject";
    let project = project(&[("rated", failing)]).await;
    let fold = fold(&project, "rated").await.unwrap();
    let windows = months("2026-03-01T00:00:00Z", "2026-05-01T00:00:00Z", &project, "rated");
    let open = fold.open(&windows).unwrap();
    let lines = "s1 call 2026-03-02T00:00:00Z 2\n s2 call 2026-03-02T00:00:00Z 0\n s3 call 2026-03-02T00:00:00Z 1\n\
        s1 call 2026-04-02T00:00:00Z 2";
    let usage = decoded(&project.usage, &events(lines), 0);
    let mut state = fold.state();
    state.fold(&usage, &open).await.unwrap();
    let rated = evaluator(&project, &usage);
    let (march, april) = (&windows[..1], &windows[1..]);
    assert_eq!(shown(&state.evaluate(april, &rated).await), "s1: 0.5");
    let said = shown(&state.evaluate(march, &rated).await);
    assert_eq!(said, shown(&rated.evaluate(fold.rule(), march).await));
    assert!(said.contains("window 2026-03-01T00:00:00Z to 2026-04-01T00:00:00Z, subject `s2`"), "{said}");
    assert_eq!(shown(&state.evaluate(&windows, &rated).await), said);
    // The state knows of it after a restart, and until the window is gone.
    let bytes = state.encode().unwrap();
    let mut state = FoldState::decode(&fold, &bytes).unwrap();
    state.fold(&decoded(&project.usage, &events("s1 call 2026-03-03T00:00:00Z 1"), 9), &open).await.unwrap();
    assert_eq!(shown(&state.evaluate(march, &rated).await), said);
    state.drop_windows(march);
    assert_eq!(shown(&state.evaluate(march, &rated).await), "");
}

#[tokio::test]
async fn an_event_that_matches_several_rows_stops_its_window() {
    let several = " AS SELECT u.subject AS customer_id, 'Calls' AS item, sum(u.quantity) AS amount, 'EUR' AS currency FROM usage u \
        JOIN labels l ON l.subject = u.subject GROUP BY u.subject";
    let project = project(&[("rated", several)]).await;
    let fold = fold(&project, "rated").await.unwrap();
    let windows = months("2026-03-01T00:00:00Z", "2026-05-01T00:00:00Z", &project, "rated");
    let usage = decoded(&project.usage, &events("s2 call 2026-04-02T00:00:00Z 5\n s1 call 2026-03-02T00:00:00Z 2"), 0);
    let mut state = fold.state();
    state.fold(&usage, &fold.open(&windows).unwrap()).await.unwrap();
    let rated = evaluator(&project, &usage);
    assert_eq!(shown(&state.evaluate(&windows[1..], &rated).await), "s2: 5");
    let said = shown(&state.evaluate(&windows, &rated).await);
    assert_eq!(said, shown(&rated.evaluate(fold.rule(), &windows).await));
    assert!(said.contains("usage event `e1` of source `test` matches several rows of `labels`"), "{said}");
}

#[tokio::test]
async fn a_checkpoint_is_of_one_version() {
    let project = project(&[("rated", BY_CUSTOMER)]).await;
    let fold = fold(&project, "rated").await.unwrap();
    let windows = months("2026-03-01T00:00:00Z", "2026-05-01T00:00:00Z", &project, "rated");
    let usage = decoded(&project.usage, &events("s2 call 2026-04-02T00:00:00Z 5"), 0);
    let mut state = fold.state();
    state.fold(&usage, &fold.open(&windows).unwrap()).await.unwrap();
    let bytes = state.encode().unwrap();
    let other = self::project(&[("rated", &BY_CUSTOMER.replace("'Calls'", "'Talk'"))]).await;
    let other = self::fold(&other, "rated").await.unwrap();
    let refused = FoldState::decode(&other, &bytes).unwrap_err().to_string();
    assert!(refused.contains("is of rule_version"), "{refused}");
    for cut in 0..bytes.len() {
        assert!(FoldState::decode(&fold, &bytes[..cut]).is_err(), "{cut} of {} bytes", bytes.len());
    }
    let mut changed = bytes.clone();
    *changed.iter_mut().rev().find(|byte| **byte == 5).unwrap() = 6;
    assert!(FoldState::decode(&fold, &changed).is_err());
    assert_eq!(FoldState::decode(&fold, &bytes).unwrap().rows(), 1);
}

/// The project with rows added to one of its tables, and with some replaced.
async fn with_rows(project: &RuleProject, table: &str, change: impl Fn(&str) -> String) -> Arc<RuleProject> {
    let mut files = project.reference.files();
    let rows = &mut files.iter_mut().find(|(name, ..)| name == table).unwrap().2;
    *rows = change(rows);
    let mut diagnostics = Diagnostics::default();
    let reference = ReferenceData::from_files(files, "project", &mut diagnostics);
    let texts = project.rules.iter().map(|rule| (rule.file.clone(), rule.text.clone())).collect();
    Arc::new(
        RuleProject::check(texts, reference, Arc::clone(&project.usage), diagnostics).await.unwrap_or_else(|found| panic!("{found}")).0,
    )
}

#[tokio::test]
async fn a_state_goes_on_but_for_windows_that_changed_rows_touch() {
    let project = project(&[("rated", BY_CUSTOMER)]).await;
    let before = fold(&project, "rated").await.unwrap();
    let windows = months("2026-03-01T00:00:00Z", "2026-06-01T00:00:00Z", &project, "rated");
    let usage = decoded(
        &project.usage,
        &events("s2 call 2026-03-02T00:00:00Z 5\n s2 call 2026-04-02T00:00:00Z 6\n s2 call 2026-05-02T00:00:00Z 7"),
        0,
    );
    let mut state = before.state();
    state.fold(&usage, &before.open(&windows).unwrap()).await.unwrap();
    // A table that the rule does not read.
    let now = with_rows(&project, "labels", |rows| format!("{rows}s3\n")).await;
    assert_ne!(now.fingerprint(), project.fingerprint());
    let after = fold(&now, "rated").await.unwrap();
    let changes = now.reference.changes_from(&project.reference.files());
    let kept = state.under(&after, &changes).unwrap();
    let all = evaluator(&now, &usage);
    assert_eq!(kept.windows(), windows);
    assert_eq!(shown(&kept.evaluate(&windows, &all).await), shown(&all.evaluate(after.rule(), &windows).await));
    // A contract that changes hands in April: March stays, and the rest is folded anew.
    let now = with_rows(&project, "contracts", |rows| {
        rows.replace("K3,s2,C3,P1,2025-01-01,", "K3,s2,C3,P1,2025-01-01,2026-04-02\nK4,s2,C4,P1,2026-04-02,")
    })
    .await;
    let after = fold(&now, "rated").await.unwrap();
    let changes = now.reference.changes_from(&project.reference.files());
    let mut kept = state.under(&after, &changes).unwrap();
    assert_eq!(kept.windows(), windows[..1]);
    let touched = after.touched(&changes);
    assert_eq!(windows.iter().map(|window| touched.touch(*window)).collect::<Vec<_>>(), [false, true, true]);
    kept.fold(&usage, &after.open(&windows[1..]).unwrap()).await.unwrap();
    let all = evaluator(&now, &usage);
    let charged = shown(&kept.evaluate(&windows, &all).await);
    assert_eq!(charged, shown(&all.evaluate(after.rule(), &windows).await));
    assert!(charged.contains("C3: 5") && charged.contains("C4: 6"), "{charged}");
    // Another text of the rule.
    let changed = self::project(&[("rated", &BY_CUSTOMER.replace("'Calls'", "'Talk'"))]).await;
    assert!(state.under(&fold(&changed, "rated").await.unwrap(), &TableChanges::new()).is_none());
}

#[tokio::test]
async fn changed_rows_touch_what_reads_them_at_the_time_of_usage_and_everything_else_always() {
    let check = async |query: &str, expected: [bool; 3]| {
        let project = project(&[("rated", query)]).await;
        let now = with_rows(&project, "contracts", |rows| {
            rows.replace("K3,s2,C3,P1,2025-01-01,", "K3,s2,C3,P1,2025-01-01,2026-04-02\nK4,s2,C4,P1,2026-04-02,")
        })
        .await;
        let touched = now.touched(&now.rules[0], &now.reference.changes_from(&project.reference.files()));
        let windows = months("2026-03-01T00:00:00Z", "2026-06-01T00:00:00Z", &project, "rated");
        assert_eq!(windows.iter().map(|window| touched.touch(*window)).collect::<Vec<_>>(), expected, "{query}");
    };
    let always = [true; 3];
    check(BY_CUSTOMER, [false, true, true]).await;
    check(" AS SELECT u.subject AS customer_id, 'Calls' AS item, sum(u.quantity) AS amount, 'EUR' AS currency FROM usage u GROUP BY u.subject", [false; 3]).await;
    // It says when the row began, which is another now; and it reads rows that no event is as of.
    check(
        &BY_CUSTOMER
            .replace("c.customer_id, 'Calls'", "c.customer_id, c.valid_to AS until, 'Calls'")
            .replace("GROUP BY c.customer_id", "GROUP BY c.customer_id, c.valid_to"),
        always,
    )
    .await;
    check(
        " AS SELECT c.customer_id, 'Fee' AS item, 1.0 AS amount, 'EUR' AS currency FROM billing_window w \
         JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON true",
        always,
    )
    .await;
    let twice = BY_CUSTOMER.replace("WHERE", "WHERE EXISTS (SELECT 1 FROM contracts x WHERE x.subject = u.subject AND x.valid_from < u.time AND (x.valid_to IS NULL OR x.valid_to > u.time)) AND");
    check(&twice, always).await;
}

#[tokio::test]
async fn reasons_are_for_people() {
    let check = async |query: &str, expected: &str| {
        let project = project(&[("rated", query)]).await;
        match fold(&project, "rated").await {
            Ok(fold) => assert_eq!(format!("keeps {}", fold.keeps().join(", ")), expected, "{query}"),
            Err(reason) => assert_eq!(reason.to_string(), expected, "{query}"),
        }
    };
    let charge = "u.subject AS customer_id, 'Calls' AS item, 'EUR' AS currency";
    check(
        &format!(" AS SELECT {charge}, u.quantity AS amount, u.id FROM usage u"),
        "it charges events one by one: no sum or other aggregate stands above usage",
    )
    .await;
    check(
        &format!(
            ", fan_out = 'allowed' AS SELECT {charge}, sum(u.q) AS amount FROM (SELECT v.subject, v.quantity * row_number() \
            OVER (PARTITION BY v.subject ORDER BY v.time, v.id) AS q FROM usage v) u GROUP BY u.subject"
        ),
        "a window function (row_number) looks at all events of the window",
    )
    .await;
    check(
        &format!(
            ", fan_out = 'allowed' AS SELECT {charge}, sum(u.quantity) AS amount FROM usage u \
            JOIN usage v ON v.id = u.subject GROUP BY u.subject"
        ),
        "events are joined with each other",
    )
    .await;
    check(
        &format!(
            ", fan_out = 'allowed' AS SELECT {charge}, sum(u.quantity) AS amount FROM usage u \
            WHERE u.quantity > (SELECT max(v.quantity) / 2 FROM usage v) GROUP BY u.subject"
        ),
        "events are joined with what is aggregated from all events of the window",
    )
    .await;
    check(
        &format!(" AS SELECT {charge}, percentile(u.quantity, 95) AS amount FROM usage u GROUP BY u.subject"),
        "keeps every value of percentile",
    )
    .await;
    check(&format!(" AS SELECT {charge}, latest(u.quantity, u.time) AS amount FROM usage u GROUP BY u.subject"), "keeps ").await;
    check(
        &format!(" AS SELECT {charge}, count(DISTINCT u.id) AS amount FROM usage u GROUP BY u.subject"),
        "keeps a row for each `id` of usage",
    )
    .await;
}

/// Queries whose rows without events, or whose tests for events, are folded as well; CHARGE is what every charge has.
const SHAPES: [&str; 12] = [
    "SELECT c.customer_id, CHARGE, coalesce(sum(u.quantity), 7) AS amount, count(*) AS n, max(u.time) AS last FROM \
        billing_window w JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON TRUE LEFT JOIN usage u ON u.subject = \
        c.subject AND u.quantity > 1 GROUP BY c.customer_id",
    "SELECT coalesce(c.customer_id, u.subject) AS customer_id, CHARGE, coalesce(sum(u.quantity), 7) AS amount, \
        count(c.contract_id) AS n FROM usage u FULL JOIN (SELECT max(d.customer_id) AS customer_id, max(d.contract_id) AS \
        contract_id, d.subject FROM billing_window w JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS d ON TRUE GROUP BY \
        d.subject) c ON u.subject = c.subject AND u.meter = 'call' GROUP BY coalesce(c.customer_id, u.subject)",
    "SELECT l.subject AS customer_id, CHARGE, coalesce(sum(u.quantity), 7) AS amount, count(*) AS n FROM usage u RIGHT JOIN \
        labels l ON l.subject = u.subject AND u.quantity < 5 GROUP BY l.subject",
    "SELECT DISTINCT l.subject AS customer_id, CHARGE, 1 AS amount FROM labels l WHERE EXISTS (SELECT 1 FROM usage u WHERE \
        u.subject = l.subject AND u.meter = 'data')",
    "SELECT DISTINCT l.subject AS customer_id, CHARGE, 1 AS amount FROM labels l WHERE NOT EXISTS (SELECT 1 FROM usage u \
        WHERE u.subject = l.subject AND u.quantity > 4)",
    "SELECT DISTINCT l.subject AS customer_id, CHARGE, 1 AS amount FROM labels l WHERE l.subject = 's2' OR l.subject IN \
        (SELECT u.subject FROM usage u WHERE u.quantity > 4)",
    "SELECT a.subject AS customer_id, CHARGE, a.q AS amount FROM (SELECT v.subject, sum(v.quantity) AS q FROM usage v GROUP \
        BY v.subject) a WHERE EXISTS (SELECT 1 FROM usage u WHERE u.subject = a.subject AND u.quantity * 2 > a.q)",
    "SELECT a.subject AS customer_id, CHARGE, a.q AS amount FROM (SELECT v.subject, max(v.quantity) AS q FROM usage v GROUP \
        BY v.subject) a WHERE a.q > 100 OR NOT EXISTS (SELECT 1 FROM usage u WHERE u.subject = a.subject AND u.meter = 'data')",
    "SELECT a.k AS customer_id, CHARGE, sum(a.q) AS amount, count(*) AS n FROM (SELECT u.subject AS k, u.quantity AS q FROM \
        usage u UNION ALL SELECT l.subject, 10 FROM labels l) a GROUP BY a.k",
    "SELECT 'all' AS customer_id, CHARGE, coalesce(sum(u.quantity), 0) AS amount, count(DISTINCT u.meter) AS n, count(*) \
        FILTER (WHERE u.meter = 'call') AS calls, min(u.meter) AS first FROM usage u",
    "SELECT 'all' AS customer_id, CHARGE, sum(b.peak) AS amount FROM (SELECT a.subject, max(a.q) AS peak FROM (SELECT \
        u.subject, time_bucket(u.time, '1 hour') AS day, sum(u.quantity) AS q FROM usage u GROUP BY u.subject, \
        time_bucket(u.time, '1 hour')) a GROUP BY a.subject) b HAVING count(*) > 0",
    "SELECT a.subject AS customer_id, CHARGE, a.q / (SELECT 1 + count(*) FROM usage v) AS amount FROM (SELECT u.subject, \
        sum(u.quantity) AS q FROM usage u GROUP BY u.subject) a",
];

#[tokio::test]
async fn rows_without_events_are_folded() {
    let mut numbers = Numbers(3);
    for query in SHAPES {
        let query = query.replace("CHARGE", "'x' AS item, 'EUR' AS currency");
        let project = project(&[("rated", &format!(", fan_out = 'allowed' AS {query}"))]).await;
        let fold = fold(&project, "rated").await.unwrap_or_else(|reason| panic!("{query}: {reason}"));
        let windows = months("2026-02-01T00:00:00Z", "2026-06-01T00:00:00Z", &project, "rated");
        for count in [0, 1, 5, 40] {
            let line = |numbers: &mut Numbers| {
                let (subject, meter) = (["s1", "s2", "s3"][numbers.below(3)], ["call", "data"][numbers.below(2)]);
                format!("{subject} {meter} 2026-{:02}-{:02}T00:00:00Z {}", numbers.below(3) + 2, numbers.below(28) + 1, numbers.below(9))
            };
            let lines: Vec<String> = (0..count).map(|_| line(&mut numbers)).collect();
            let usage = decoded(&project.usage, &events(&lines.join("\n")), 0);
            let open = fold.open(&windows).unwrap();
            let mut states = [fold.state(), fold.state()];
            let mut first = 0;
            while first < count {
                let rows = (numbers.below(9) + 1).min(count - first);
                states[numbers.below(2)].fold(&usage.slice(first, rows), &open).await.unwrap();
                first += rows;
            }
            let [mut state, delta] = states;
            state.merge(delta).await.unwrap();
            let rated = evaluator(&project, &usage);
            let expected = shown(&rated.evaluate(fold.rule(), &windows).await);
            assert!(!expected.contains("rule `"), "{expected}");
            assert_eq!(shown(&state.evaluate(&windows, &rated).await), expected, "{query} of {count} events");
        }
    }
}

/// A rollover that is one in one event and another in the next is only seen where their states meet.
#[tokio::test]
async fn states_that_contradict_each_other_stop_their_window_only() {
    let registers = " AS SELECT u.subject AS customer_id, 'Energy' AS item, 'EUR' AS currency, \
        register_usage(u.quantity, u.time, CASE WHEN u.meter = 'small' THEN 100 ELSE 1000 END) AS amount FROM usage u GROUP BY u.subject";
    let project = project(&[("rated", registers)]).await;
    let fold = fold(&project, "rated").await.unwrap();
    assert_eq!(fold.keeps(), ["every value of register_usage"]);
    let windows = months("2026-03-01T00:00:00Z", "2026-05-01T00:00:00Z", &project, "rated");
    let open = fold.open(&windows).unwrap();
    let mut lines: Vec<String> = (1..30).map(|day| format!("s1 small 2026-03-{day:02}T00:00:00Z {day}")).collect();
    lines.extend((1..30).map(|day| format!("s1 small 2026-04-{day:02}T00:00:00Z {day}")));
    lines.push("s1 big 2026-03-30T00:00:00Z 50".to_owned());
    for rows in [1, 7] {
        let mut state = fold.state();
        let usage = decoded(&project.usage, &events(&lines.join("\n")), 0);
        for first in (0..usage.num_rows()).step_by(rows) {
            state.fold(&usage.slice(first, rows.min(usage.num_rows() - first)), &open).await.unwrap();
        }
        let rated = evaluator(&project, &usage);
        assert_eq!(shown(&state.evaluate(&windows[1..], &rated).await), "s1: 28");
        let said = shown(&state.evaluate(&windows, &rated).await);
        assert!(said.contains("window 2026-03-01T00:00:00Z to 2026-04-01T00:00:00Z"), "{said}");
        assert!(said.contains("register_usage: its last argument is"), "{said}");
    }
}

/// The last one alone is kept, whatever the order.
#[tokio::test]
async fn latest_keeps_one_row() {
    let latest = " AS SELECT u.subject AS customer_id, 'Level' AS item, latest(u.quantity, u.time) AS amount, 'EUR' AS currency \
        FROM usage u GROUP BY u.subject";
    let project = project(&[("rated", latest)]).await;
    let fold = fold(&project, "rated").await.unwrap();
    let windows = months("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z", &project, "rated");
    let open = fold.open(&windows).unwrap();
    let mut state = fold.state();
    let many: String = (0..500).map(|n| format!("s1 level 2026-03-{:02}T00:00:00Z {n}\n", n * 7 % 30 + 1)).collect();
    let all = decoded(&project.usage, &events(&many), 0);
    for row in 0..all.num_rows() {
        state.fold(&all.slice(row, 1), &open).await.unwrap();
    }
    let rated = evaluator(&project, &all);
    assert_eq!(shown(&state.evaluate(&windows, &rated).await), shown(&rated.evaluate(fold.rule(), &windows).await));
    // An encoded state holds the values that are kept, and not the room that was made for them.
    assert!(state.encode().unwrap().len() < 40_000, "{}", state.encode().unwrap().len());
    assert!(state.rows() <= 34, "{} rows", state.rows());
}

/// Numbers that are the same in every run: Knuth's linear congruential generator.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// The texts of a column in any reference table.
fn texts(reference: &ReferenceData, column: &str) -> Vec<String> {
    let columns = reference.tables().filter_map(|table| table.batch().column_by_name(column).cloned());
    let mut found: BTreeSet<String> = columns
        .filter_map(|column| column.as_string_opt::<i32>().map(|texts| texts.iter().flatten().map(str::to_owned).collect::<Vec<_>>()))
        .flatten()
        .collect();
    found.insert("unknown".to_owned());
    found.into_iter().collect()
}

/// Usage of an example's meters and subjects.
fn made_up(project: &RuleProject, from: i64, numbers: &mut Numbers) -> Vec<Event> {
    let subjects = texts(&project.reference, "subject");
    let named =
        |text: &str| text.split("meter = '").skip(1).filter_map(|rest| Some(rest.split_once('\'')?.0.to_owned())).collect::<Vec<_>>();
    let meters: BTreeSet<String> =
        project.rules.iter().flat_map(|rule| rule.meters.iter().flatten().cloned().chain(named(&rule.text))).collect();
    let meters: Vec<String> = meters.into_iter().collect();
    let dimensions: Vec<Vec<String>> = project
        .usage
        .dimensions()
        .iter()
        .map(|dimension| match dimension.name.as_str() {
            "sale_currency" => vec!["EUR".to_owned()],
            "model" => texts(&project.reference, "item").iter().map(|item| item.trim_start_matches("tokens-").to_owned()).collect(),
            name => texts(&project.reference, name),
        })
        .collect();
    (0..400)
        .map(|_| {
            let time = from + numbers.below(120 * 24 * 60) as i64 * 60_000_000;
            Event {
                meter: meters[numbers.below(meters.len())].clone(),
                subject: subjects[numbers.below(subjects.len())].clone(),
                time,
                quantity: ["0.25", "1", "3", "40", "750"][numbers.below(5)].to_owned(),
                end: Some(time + 15 * 60_000_000),
                dimensions: dimensions.iter().map(|texts| texts[numbers.below(texts.len())].clone()).collect(),
            }
        })
        .collect()
}

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("ratemill.toml").exists());
    found.sort();
    found
}

#[tokio::test]
async fn every_rule_of_the_examples_is_folded() {
    let (mut not_folded, mut kept, mut charged) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for folder in examples() {
        let config: toml::Table = std::fs::read_to_string(folder.join("ratemill.toml")).unwrap().parse().unwrap();
        let dimensions: Vec<String> =
            config.get("dimensions").and_then(|table| table.as_table()).into_iter().flat_map(toml::Table::keys).cloned().collect();
        let (project, _) = RuleProject::load(&folder, "example", usage_schema(&dimensions)).await.unwrap_or_else(|found| panic!("{found}"));
        let project = Arc::new(project);
        let mut numbers = Numbers(7);
        let from = project.rules.iter().map(|rule| rule.options.effective_from).max().unwrap() + 20 * DAY;
        let usage = decoded(&project.usage, &made_up(&project, from, &mut numbers), 0);
        let rated = evaluator(&project, &usage);
        for rule in &project.rules {
            let name = format!("{}/{}", folder.file_name().unwrap().to_string_lossy(), rule.name);
            let fold = match fold(&project, &rule.name).await {
                Ok(fold) => fold,
                Err(reason) => {
                    not_folded.insert(name, reason.to_string());
                    continue;
                }
            };
            if !fold.keeps().is_empty() {
                kept.insert(name.clone(), fold.keeps().join(", "));
            }
            let mut windows = rule.windows_between(&project.reference, from, from + 120 * DAY).unwrap();
            windows.truncate(5);
            let open = fold.open(&windows).unwrap();
            let mut state = fold.state();
            let mut first = 0;
            while first < usage.num_rows() {
                let rows = (numbers.below(60) + 1).min(usage.num_rows() - first);
                state.fold(&usage.slice(first, rows), &open).await.unwrap();
                first += rows;
            }
            for window in windows {
                let expected = shown(&rated.evaluate(rule, &[window]).await);
                assert_eq!(shown(&state.evaluate(&[window], &rated).await), expected, "{name} in {window}");
                if expected.contains(": ") && !expected.contains("rule `") {
                    charged.insert(name.clone());
                }
            }
        }
    }
    let listed =
        |list: &[(&str, &str)]| list.iter().map(|(name, reason)| ((*name).to_owned(), (*reason).to_owned())).collect::<BTreeMap<_, _>>();
    assert_eq!(not_folded, listed(&NOT_FOLDED));
    assert_eq!(kept, listed(&KEPT));
    assert!(charged.len() > 14, "only these charged anything: {charged:?}");
    for (name, _) in KEPT {
        assert!(charged.contains(name), "{name} charged nothing");
    }
}

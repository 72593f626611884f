#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use futures::TryStreamExt;
use ratemill_schemas::time::parse_instant;
use ratemill_schemas::{EventHasher, UsageBatchBuilder, UsageEvent, UsageSchema};

use super::*;
use crate::diagnostics::Diagnostics;
use crate::project::RuleProject;
use crate::reference::ReferenceData;
use crate::session::{SessionLimits, runtime};

const CONTRACTS: &str = "subject,customer_id,contract_id,plan,status,anchor_day,valid_from,valid_to\n\
    s1,C1,K1,P1,active,1,2026-01-01,2026-09-15\ns2,C2,K2,P2,active,10,2026-01-01,\ns3,C3,K3,P1,blocked,1,2026-01-01,\n";

async fn project(options: &str, query: &str) -> Arc<RuleProject> {
    let contracts = "key = ['subject']\n[columns]\nsubject = 'text'\ncustomer_id = 'text'\ncontract_id = 'text'\nplan = 'text'\n\
        status = 'text'\nanchor_day = 'integer'\nvalid_from = 'date'\nvalid_to = 'date?'\n";
    let prices = "key = ['plan', 'item']\n[columns]\nplan = 'text'\nitem = 'text'\nprice = 'decimal'\n";
    let file = |name: &str, declared: &str, rows: &str| (name.to_owned(), declared.to_owned(), rows.to_owned());
    let mut diagnostics = Diagnostics::default();
    let files = vec![file("contracts", contracts, CONTRACTS), file("prices", prices, "plan,item,price\nP1,calls,2\nP2,data,3\n")];
    let reference = ReferenceData::from_files(files, "project", &mut diagnostics);
    let rule = format!("CREATE MATERIALIZED VIEW rated WITH (effective_from = '2026-09-01', {options}) AS {query}");
    let usage = Arc::new(UsageSchema::new(Vec::new()));
    let checked = RuleProject::check(vec![("rated.sql".to_owned(), rule)], reference, usage, diagnostics).await;
    Arc::new(checked.unwrap_or_else(|found| panic!("{found}")).0)
}

/// Events by their ids: meter, subject and day of September, or of the month and day.
fn usage(schema: &UsageSchema, events: &[(&str, &str, &str, &str)]) -> RecordBatch {
    let mut builder = UsageBatchBuilder::new(schema, EventHasher::new([1, 2]), i64::MAX, events.len());
    let mut times = Vec::new();
    for (id, meter, subject, day) in events {
        let time = parse_instant(&format!("2026-{day}T10:00:00Z")).unwrap();
        times.push(time);
        let event = UsageEvent {
            source: "test",
            id,
            meter,
            subject,
            time,
            quantity: "2".parse().unwrap(),
            end: None,
            dimensions: &[],
            attributes: &[],
        };
        builder.append(&event).unwrap();
    }
    let (decoded, ..) = builder.finish().unwrap();
    let mut columns = decoded.columns().to_vec();
    columns.push(Arc::new(arrow::array::TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC")));
    columns.push(Arc::new(Int64Array::from_iter_values(0..i64::try_from(times.len()).unwrap())));
    columns.push(Arc::new(arrow::array::Date32Array::from_iter_values(times.iter().map(|time| ratemill_schemas::time::day_of(*time)))));
    RecordBatch::try_new(Arc::clone(schema.stored()), columns).unwrap()
}

const EVENTS: [(&str, &str, &str, &str); 9] = [
    ("good", "calls", "s1", "09-02"),
    ("ended", "calls", "s1", "09-20"),
    ("unknown", "calls", "nobody", "09-02"),
    ("unpriced", "calls", "s2", "09-20"),
    ("blocked", "calls", "s3", "09-02"),
    ("other meter", "data", "s2", "09-20"),
    ("october", "calls", "s1", "10-02"),
    ("before", "calls", "s1", "08-02"),
    ("lost", "rooms", "s2", "09-21"),
];

fn evaluator(project: &Arc<RuleProject>, usage: &RecordBatch) -> Evaluator {
    let limits = SessionLimits { partitions: 2, ..SessionLimits::default() };
    let table = MemTable::try_new(usage.schema(), vec![vec![usage.clone()]]).unwrap();
    Evaluator::new(runtime(&limits).unwrap(), limits, Arc::clone(project), Arc::new(table))
}

/// What is lost of September and October, and why; usage that no window has is with the place -1.
async fn lost(options: &str, query: &str) -> BTreeMap<String, String> {
    let project = project(options, query).await;
    let usage = usage(&project.usage, &EVENTS);
    let evaluator = evaluator(&project, &usage);
    let rule = &project.rules[0];
    let time = Window { start: parse_instant("2026-09-01T00:00:00Z").unwrap(), end: parse_instant("2026-11-01T00:00:00Z").unwrap() };
    let windows = rule.rated_between(&project.reference, time.start, time.end).unwrap();
    let places = Places::of(windows).or_by(&project.reference).or_astray(time);
    let claims = Claims::of(&evaluator, rule, places).await.unwrap();
    let mut found = BTreeMap::new();
    for batch in claims.unrated().await.unwrap().try_collect::<Vec<_>>().await.unwrap() {
        let fates = claims.fates(&batch).await.unwrap();
        for (row, fate) in fates.into_iter().enumerate() {
            let Fate::Lost(reason) = fate else { panic!("{fate:?}") };
            let id = batch.column_by_name("id").unwrap().as_string::<i32>().value(row).to_owned();
            let place = batch.column_by_name(PLACE).unwrap().as_primitive::<Int64Type>().value(row);
            let astray = if place == ASTRAY { "astray: " } else { "" };
            found.insert(id, format!("{astray}{}", claims.reason(reason).unwrap()));
        }
    }
    found
}

fn told(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(id, reason)| ((*id).to_owned(), (*reason).to_owned())).collect()
}

#[tokio::test]
async fn the_first_step_that_loses_an_event_is_named() {
    let query = "SELECT c.customer_id, 'Calls' AS item, sum(u.quantity * p.price) AS amount, 'EUR' AS currency
        FROM usage u
        JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
        JOIN prices p ON p.plan = c.plan AND p.item = 'calls'
        WHERE u.meter = 'calls' AND c.status = 'active' AND u.quantity > 1
        GROUP BY c.customer_id";
    let found = lost("window = 'month'", query).await;
    assert_eq!(found["unknown"], "no row of contracts");
    let ended = &found["ended"];
    assert!(ended.starts_with("no row of contracts with ") && ended.contains("c.valid_from") && ended.contains("c.valid_to"), "{ended}");
    assert_eq!(found["october"], found["ended"]);
    assert_eq!(found["unpriced"], "no row of prices with p.item = 'calls'");
    assert_eq!(found["blocked"], "not c.status = 'active'");
    assert_eq!(found.len(), 5, "{found:?}");
}

#[tokio::test]
async fn outer_joins_keep_events_or_lose_them() {
    let kept = "SELECT u.subject AS customer_id, 'Calls' AS item, coalesce(sum(u.quantity * p.price), 0) AS amount, 'EUR' AS currency
        FROM usage u
        LEFT JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
        LEFT JOIN prices p ON p.plan = c.plan AND p.item = u.meter
        WHERE u.meter = 'calls' GROUP BY u.subject";
    assert_eq!(lost("window = 'month'", kept).await, BTreeMap::new());
    let missed = "SELECT p.plan AS customer_id, p.item, coalesce(sum(u.quantity), 0) AS amount, 'EUR' AS currency
        FROM prices p LEFT JOIN usage u ON u.meter = p.item AND u.subject = 's2' GROUP BY p.plan, p.item";
    assert_eq!(lost("window = 'month', fan_out = 'allowed'", missed).await, told(&[("lost", "no row of prices")]));
}

#[tokio::test]
async fn usage_without_a_contract_has_no_billing_period() {
    let query = "SELECT c.customer_id, c.contract_id, 'Calls' AS item, sum(u.quantity) AS amount, 'EUR' AS currency
        FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
        WHERE u.meter = 'calls' GROUP BY c.customer_id, c.contract_id";
    let astray = "astray: no row of contracts";
    assert_eq!(lost("window = 'billing_period'", query).await, told(&[("unknown", astray), ("ended", astray), ("october", astray)]));
}

#[tokio::test]
async fn what_several_ways_claim_is_lost_when_none_rates_it() {
    let query = "WITH priced AS (
            SELECT u.subject, u.meter, u.quantity * p.price AS amount FROM usage u JOIN prices p ON p.item = u.meter AND p.plan = 'P1'
            UNION ALL
            SELECT u.subject, u.meter, 1 AS amount FROM usage u WHERE u.meter = 'data')
        SELECT a.subject AS customer_id, a.meter AS item, sum(a.amount) AS amount, 'EUR' AS currency
        FROM priced a WHERE a.meter <> 'rooms' AND a.subject <> 'nobody' GROUP BY a.subject, a.meter";
    assert_eq!(lost("window = 'month', fan_out = 'allowed'", query).await, BTreeMap::new());
    let query = query.replace("a.meter <> 'rooms'", "a.amount > 0");
    assert_eq!(lost("window = 'month', fan_out = 'allowed'", &query).await, told(&[("lost", "no row of prices")]));
}

#[tokio::test]
async fn asking_whether_there_is_usage_claims_none() {
    let query = "SELECT DISTINCT p.plan AS customer_id, 'Idle' AS item, 5 AS amount, 'EUR' AS currency FROM prices p
        WHERE NOT EXISTS (SELECT 1 FROM usage u WHERE u.meter = p.item)";
    assert_eq!(lost("window = 'month'", query).await, BTreeMap::new());
}

#[tokio::test]
async fn usage_that_no_rule_claims_is_found() {
    let query = "SELECT c.customer_id, 'Calls' AS item, sum(u.quantity) AS amount, 'EUR' AS currency
        FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
        WHERE u.meter IN ('calls', 'data') GROUP BY c.customer_id";
    for (window, expected) in [("month", ["before", "lost"]), ("billing_period", ["before", "lost"])] {
        let query = if window == "month" { query.to_owned() } else { query.replace("c.customer_id", "c.customer_id, c.contract_id") };
        let project = project(&format!("window = '{window}'"), &query).await;
        let usage = usage(&project.usage, &EVENTS);
        let (stream, unknown) = unclaimed(&evaluator(&project, &usage)).await.unwrap();
        assert!(unknown.is_empty());
        let mut ids: Vec<String> = Vec::new();
        for batch in stream.try_collect::<Vec<_>>().await.unwrap() {
            ids.extend(batch.column_by_name("id").unwrap().as_string::<i32>().iter().flatten().map(str::to_owned));
        }
        ids.sort();
        assert_eq!(ids, expected, "{window}");
    }
}

#[tokio::test]
async fn a_rule_that_cannot_be_analysed_says_so() {
    let query =
        "SELECT u.subject AS customer_id, u.id AS item, u.quantity AS amount, 'EUR' AS currency FROM usage u ORDER BY u.time, u.id LIMIT 3";
    let project = project("window = 'month'", query).await;
    let usage = usage(&project.usage, &EVENTS);
    let error = Claims::of(&evaluator(&project, &usage), &project.rules[0], Places::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "it runs window by window: LIMIT counts the rows of all windows together");
}

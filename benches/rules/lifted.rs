//! A year of hourly windows: one execution for all of them against one for each.

use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use datafusion::datasource::MemTable;
use ratemill_rules::session::{SessionLimits, runtime};
use ratemill_rules::{Diagnostics, Evaluator, Mode, ReferenceData, RuleProject};
use ratemill_schemas::time::{day_of, parse_instant};
use ratemill_schemas::{EventHasher, UsageBatchBuilder, UsageEvent, UsageSchema, Window};

use crate::best;

const RULE: &str = "CREATE MATERIALIZED VIEW energy WITH (window = 'hour', effective_from = '2025-01-01') AS
SELECT c.customer_id, 'Energy' AS item, sum(u.quantity) AS quantity, graduated(sum(u.quantity), p.tiers) AS amount, c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan
WHERE u.meter = 'kwh'
GROUP BY c.customer_id, c.currency, p.tiers";
const HOURS: i64 = 8_760;
const HOUR: i64 = 3_600_000_000;

pub async fn measure(rows: usize) {
    let schema = Arc::new(UsageSchema::new(Vec::new()));
    let start = parse_instant("2025-01-01T00:00:00Z").expect("an instant");
    let windows: Vec<Window> = (0..HOURS).map(|hour| Window { start: start + hour * HOUR, end: start + (hour + 1) * HOUR }).collect();
    let usage = usage(&schema, start, rows);
    let limits = SessionLimits { partitions: 1, ..SessionLimits::default() };
    let runtime = runtime(&limits).expect("a runtime");
    let files = vec![("rules/energy.sql".to_owned(), RULE.to_owned())];
    let (project, _) =
        RuleProject::check(files, reference(), Arc::clone(&schema), Diagnostics::default()).await.unwrap_or_else(|found| panic!("{found}"));
    let project = Arc::new(project);
    let table = Arc::new(MemTable::try_new(Arc::clone(schema.stored()), vec![vec![usage]]).expect("usage"));
    println!("\n{:<34} {:>10} {:>12} {:>14}", "8,760 hourly windows", "seconds", "windows/s", "events/s");
    for (name, mode, part) in [
        ("lifted: one execution", Mode::Lifted, windows.len()),
        // Each window reads all usage in memory here: a hundredth of them is enough to see what one costs.
        ("one by one (a hundredth, scaled)", Mode::OneByOne, windows.len() / 100),
    ] {
        let evaluator = Evaluator::new(Arc::clone(&runtime), limits.clone(), Arc::clone(&project), Arc::clone(&table) as _).with_mode(mode);
        let seconds = best(|| async {
            let charges = evaluator.evaluate(&project.rules[0], &windows[..part]).await.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(charges.len(), part);
        })
        .await;
        #[allow(clippy::cast_precision_loss)]
        let whole = seconds * windows.len() as f64 / part as f64;
        #[allow(clippy::cast_precision_loss)]
        let (per_window, per_event) = (windows.len() as f64 / whole, rows as f64 / whole);
        println!("{name:<34} {whole:>10.2} {per_window:>12.0} {per_event:>14.0}");
    }
    // Where the time goes: the same windows without their usage is planning, splitting and checking; few windows with all
    // usage is reading and aggregating.
    let empty = Arc::new(MemTable::try_new(Arc::clone(schema.stored()), vec![vec![]]).expect("usage"));
    let evaluator = Evaluator::new(Arc::clone(&runtime), limits.clone(), Arc::clone(&project), empty);
    let overhead = best(|| async {
        evaluator.evaluate(&project.rules[0], &windows).await.unwrap_or_else(|error| panic!("{error}"));
    })
    .await;
    println!("{:<34} {overhead:>10.2}", "of it planning and empty windows");
}

fn usage(schema: &Arc<UsageSchema>, start: i64, rows: usize) -> RecordBatch {
    let mut builder = UsageBatchBuilder::new(schema, EventHasher::new([1, 2]), i64::MAX, rows);
    let count = i64::try_from(rows).expect("a count");
    let times: Vec<i64> = (0..count).map(|row| start + row * (HOURS * HOUR / count)).collect();
    for (row, time) in times.iter().enumerate() {
        let (id, subject) = (format!("e{row}"), format!("m{}", row % 200));
        let event = UsageEvent {
            source: "bench",
            id: &id,
            meter: "kwh",
            subject: &subject,
            time: *time,
            quantity: "12.375".parse().expect("a decimal"),
            end: None,
            dimensions: &[],
            attributes: &[],
        };
        builder.append(&event).expect("an event");
    }
    let (decoded, ..) = builder.finish().expect("a batch");
    let mut columns = decoded.columns().to_vec();
    columns.push(Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC")) as ArrayRef);
    columns.push(Arc::new(Int64Array::from_iter_values(0..count)));
    columns.push(Arc::new(Date32Array::from_iter_values(times.iter().map(|time| day_of(*time)))));
    RecordBatch::try_new(Arc::clone(schema.stored()), columns).expect("usage")
}

fn reference() -> ReferenceData {
    let contracts: String = (0..200).map(|n| format!("m{n},c{},a,EUR,2024-01-01,\n", n % 50)).collect();
    let files = vec![
        (
            "contracts".to_owned(),
            "key = [\"subject\"]\n[columns]\nsubject = \"text\"\ncustomer_id = \"text\"\nplan = \"text\"\ncurrency = \"text\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n".to_owned(),
            format!("subject,customer_id,plan,currency,valid_from,valid_to\n{contracts}"),
        ),
        (
            "prices".to_owned(),
            "key = [\"plan\"]\n[columns]\nplan = \"text\"\nup_to = \"decimal?\"\nunit_price = \"decimal\"\nflat_fee = \"decimal\"\n".to_owned(),
            "plan,up_to,unit_price,flat_fee\na,100,0.5,1\na,,0.4,0\n".to_owned(),
        ),
    ];
    let mut diagnostics = Diagnostics::default();
    let reference = ReferenceData::from_files(files, "bench", &mut diagnostics);
    assert!(!diagnostics.has_errors(), "{diagnostics}");
    reference
}

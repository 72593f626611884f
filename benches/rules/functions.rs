//! Rows per second of the pricing functions: `SELECT count(function(…))` over columns that are in memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Decimal128Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use ratemill_rules::functions::register_reference_functions;
use ratemill_rules::session::{SessionLimits, runtime, session};
use ratemill_rules::{Diagnostics, ReferenceData};
use ratemill_schemas::decimal::DECIMAL;
use ratemill_schemas::time::instant_type;

use crate::best;

/// Name and call; `q` is a quantity, `t` an instant, `e` an hour later, `d` a date, `z` a zone, `c` a currency.
const CALLS: [(&str, &str); 42] = [
    ("graduated", "graduated(q, tiers)"),
    ("volume", "volume(q, tiers)"),
    ("graduated_percentage", "graduated_percentage(q, tiers)"),
    ("tier_breakdown", "tier_breakdown(q, tiers)"),
    ("stairstep", "stairstep(q, tiers)"),
    ("capacity", "capacity(q, tiers)"),
    ("tier_fees", "tier_fees(q, tiers)"),
    ("prorated_graduated", "prorated_graduated(q, q + 1, 0.5, tiers)"),
    ("packages", "packages(q, 10, 5)"),
    ("package", "package(q, 10, 2.5, 5)"),
    ("tiered_blocks", "tiered_blocks(q, blocks)"),
    ("block_breakdown", "block_breakdown(q, blocks)"),
    ("overage", "overage(q, 100)"),
    ("percentage", "percentage(q, 2.9, 0.3, 0.5, 100)"),
    ("at_least", "at_least(q, 10)"),
    ("at_most", "at_most(q, 10)"),
    ("increments", "increments(q, 60, 6)"),
    ("round_up_to", "round_up_to(q, 0.25)"),
    ("round_money", "round_money(q, c)"),
    ("round", "round(q, 2, 'half_even')"),
    ("q * price", "q * 0.0123"),
    ("q / price", "q / 7"),
    ("convert", "convert(q, c, 'USD', t)"),
    ("prorate", "prorate(q, t, NULL, t, e)"),
    ("prorate_days", "prorate_days(q, 10, 31)"),
    ("prorate_by_day", "prorate_by_day(q, t, e, t, e, z)"),
    ("days_between", "days_between(d, d)"),
    ("elapsed_days", "elapsed_days(t, e, z)"),
    ("local_date", "local_date(t, z)"),
    ("local_midnight", "local_midnight(d, z)"),
    ("weekday", "weekday(d)"),
    ("time_bucket 15 minutes", "time_bucket(t, '15 minutes')"),
    ("time_bucket day", "time_bucket(t, 'day', z)"),
    ("in_time_of_day", "in_time_of_day(t, z, '07:00', '20:00')"),
    ("add_months", "add_months(d, 1, 31)"),
    ("billing_cycles", "billing_cycles(d, NULL, add_months(d, 12), 'monthly', 15)"),
    ("time_of_use", "time_of_use(t, e, q, z, windows, NULL)"),
    ("time_of_use_breakdown", "time_of_use_breakdown(t, e, q, z, windows, NULL)"),
    ("call_charge", "call_charge(t, q, z, rates)"),
    ("call_breakdown", "call_breakdown(t, q, z, rates)"),
    ("seconds_between", "seconds_between(t, e)"),
    ("parse_decimal", "parse_decimal(n)"),
];
/// Aggregates over groups of a hundred rows.
const AGGREGATES: [(&str, &str); 7] = [
    ("sum", "sum(q)"),
    ("count distinct", "count(DISTINCT q)"),
    ("latest", "latest(q, t)"),
    ("percentile", "percentile(q, 95)"),
    ("weighted", "weighted(q, t, w, x)"),
    ("register_usage", "register_usage(q, t)"),
    ("max", "max(q)"),
];

pub async fn measure(rows: usize) {
    let limits = SessionLimits { partitions: 1, ..SessionLimits::default() };
    let context = session(runtime(&limits).expect("a runtime"), &limits);
    let reference = reference();
    register_reference_functions(&context, &reference).expect("functions");
    register(&context, "rows", numbers(rows));
    for table in reference.tables() {
        register(&context, table.name(), table.batch().clone());
    }
    let joined = context
        .sql("SELECT r.*, p.tiers, b.blocks, w.windows, k.rates FROM rows r CROSS JOIN prices p CROSS JOIN block_prices b CROSS JOIN tariffs w CROSS JOIN calls k")
        .await
        .expect("lists")
        .collect()
        .await
        .expect("lists");
    context.register_table("data", Arc::new(MemTable::try_new(joined[0].schema(), vec![joined]).expect("a table"))).expect("a table");
    println!("{:<26} {:>14} {:>10}", "function", "rows/s", "ns/row");
    let scan = run(&context, "SELECT count(q) FROM data").await;
    for (name, call) in CALLS {
        print(name, rows, run(&context, &format!("SELECT count(v) FROM (SELECT {call} AS v FROM data)")).await - scan);
    }
    for (name, call) in AGGREGATES {
        let query = format!("SELECT count(v) FROM (SELECT {call} AS v FROM data GROUP BY g)");
        print(&format!("{name} (aggregate)"), rows, run(&context, &query).await);
    }
}

async fn run(context: &SessionContext, query: &str) -> f64 {
    best(|| async {
        context
            .sql(query)
            .await
            .unwrap_or_else(|error| panic!("{query}: {error}"))
            .collect()
            .await
            .unwrap_or_else(|error| panic!("{query}: {error}"));
    })
    .await
}

#[allow(clippy::cast_precision_loss)]
fn print(name: &str, rows: usize, seconds: f64) {
    let seconds = seconds.max(1e-9);
    println!("{name:<26} {:>14.0} {:>10.0}", rows as f64 / seconds, seconds * 1e9 / rows as f64);
}

fn register(context: &SessionContext, name: &str, batch: RecordBatch) {
    let slices = (0..batch.num_rows().div_ceil(8_192))
        .map(|index| batch.slice(index * 8_192, 8_192.min(batch.num_rows() - index * 8_192)))
        .collect();
    let table = MemTable::try_new(batch.schema(), vec![slices]).expect("a table");
    context.register_table(name, Arc::new(table)).expect("a table");
}

fn numbers(rows: usize) -> RecordBatch {
    let count = i64::try_from(rows).expect("a count");
    let start = 1_767_225_600_000_000_i64;
    let instants = |value: &dyn Fn(i64) -> i64| {
        Arc::new((0..count).map(|row| Some(value(row))).collect::<TimestampMicrosecondArray>().with_timezone("UTC")) as ArrayRef
    };
    let texts = |value: &dyn Fn(i64) -> String| Arc::new((0..count).map(|row| Some(value(row))).collect::<StringArray>()) as ArrayRef;
    let quantities =
        (0..count).map(|row| Some(i128::from(row % 997) * 1_250_000_000_000_000_000)).collect::<Decimal128Array>().with_data_type(DECIMAL);
    let groups = (0..count).map(|row| Some(row / 100)).collect::<arrow::array::Int64Array>();
    let fields = [
        ("q", DECIMAL),
        ("t", instant_type()),
        ("e", instant_type()),
        ("w", instant_type()),
        ("x", instant_type()),
        ("d", DataType::Date32),
        ("z", DataType::Utf8),
        ("c", DataType::Utf8),
        ("n", DataType::Utf8),
        ("g", DataType::Int64),
    ];
    let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, false)).to_vec());
    RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(quantities),
            instants(&|row| start + row * 157_000_000),
            instants(&|row| start + row * 157_000_000 + 3_600_000_000),
            instants(&|row| start + row / 100 * 100 * 157_000_000),
            instants(&|row| start + (row / 100 + 1) * 100 * 157_000_000),
            Arc::new((0..count).map(|row| i32::try_from(20_454 + row % 365).ok()).collect::<Date32Array>()),
            texts(&|_| "Europe/London".to_owned()),
            texts(&|_| "EUR".to_owned()),
            texts(&|row| format!("{}.{:04}", row % 997, row % 10_000)),
            Arc::new(groups),
        ],
    )
    .expect("rows")
}

fn reference() -> ReferenceData {
    let table = |name: &str, declaration: &str, csv: &str| (name.to_owned(), declaration.to_owned(), csv.to_owned());
    let files = vec![
        table(
            "prices",
            "[columns]\nplan = \"text\"\nup_to = \"decimal?\"\nunit_price = \"decimal\"\nflat_fee = \"decimal\"\n",
            "plan,up_to,unit_price,flat_fee\na,100,0.5,1\na,500,0.4,0\na,1000,0.3,0\na,,0.2,0\n",
        ),
        table(
            "block_prices",
            "[columns]\nplan = \"text\"\nblock_size = \"decimal\"\nmax_blocks = \"decimal?\"\nblock_price = \"decimal\"\n[lists]\nblocks = [\"block_size\", \"max_blocks\", \"block_price\"]\n",
            "plan,block_size,max_blocks,block_price\na,100,5,1\na,1000,,2\n",
        ),
        table(
            "tariffs",
            "[columns]\nplan = \"text\"\ndays = \"text\"\nfrom_time = \"text\"\nto_time = \"text\"\nunit_price = \"decimal\"\n[lists]\nwindows = [\"days\", \"from_time\", \"to_time\", \"unit_price\"]\n",
            "plan,days,from_time,to_time,unit_price\na,1-5,07:00,20:00,0.36\na,1-7,00:00,24:00,0.28\n",
        ),
        table(
            "calls",
            "[columns]\nplan = \"text\"\ndays = \"text\"\nstart = \"text\"\nconnect_fee = \"decimal\"\nfrom_s = \"integer\"\nrate = \"decimal\"\nper_s = \"integer\"\nincrement_s = \"integer\"\n[lists]\nrates = [\"days\", \"start\", \"connect_fee\", \"from_s\", \"rate\", \"per_s\", \"increment_s\"]\n",
            "plan,days,start,connect_fee,from_s,rate,per_s,increment_s\na,1-7,00:00,0.1,0,0.06,60,60\na,1-7,00:00,0.1,60,0.06,60,1\na,1-7,18:00,0.05,0,0.03,60,1\n",
        ),
        table(
            "exchange_rates",
            "[columns]\nfrom_currency = \"text\"\nto_currency = \"text\"\nrate = \"decimal\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n",
            "from_currency,to_currency,rate,valid_from,valid_to\nEUR,USD,1.0823,2025-01-01,\n",
        ),
    ];
    let mut diagnostics = Diagnostics::default();
    let reference = ReferenceData::from_files(files, "bench", &mut diagnostics);
    assert!(!diagnostics.has_errors(), "{diagnostics}");
    reference
}

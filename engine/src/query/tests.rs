//! The invoice views over a ledger with corrections of closed months.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use arrow::array::{Decimal128Array, UInt32Array};
use arrow::compute::concat_batches;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ratemill_rules::evaluate::CHARGE_COLUMNS;
use ratemill_schemas::decimal::DECIMAL;
use ratemill_schemas::{Currency, Window, charges};

use super::*;
use crate::ledger::{Posting, post};

const CURRENCIES: [&str; 3] = ["EUR", "JPY", "KWD"];

/// A line: customer, item, currency, billing period. Its postings: period, amount and what was billed.
type Lines = BTreeMap<[String; 4], Vec<(String, Decimal, Decimal)>>;

/// Charges of one customer in a window: now and then one is absent.
fn charges_of(customer: &str, random: &mut StdRng) -> RecordBatch {
    let mut rows: Vec<(&str, i128)> = Vec::new();
    for currency in CURRENCIES {
        // Thousandths, of which halves of the minor unit are many, and any digits.
        let whole = i128::from(random.random_range(-2_000_i64..10_000)) * 1_000_000_000_000_000;
        let part = if random.random_bool(0.5) { 0 } else { i128::from(random.random_range(0_i64..1_000_000_000_000_000)) };
        if random.random_bool(0.9) {
            rows.push((currency, whole + part));
        }
    }
    let text = |value: &str| Arc::new(StringArray::from(vec![value; rows.len()])) as ArrayRef;
    let columns: Vec<ArrayRef> = CHARGE_COLUMNS
        .iter()
        .map(|name| match *name {
            "customer_id" => text(customer),
            "item" => text("calls"),
            "currency" => Arc::new(rows.iter().map(|(currency, _)| Some(*currency)).collect::<StringArray>()),
            "amount" => Arc::new(Decimal128Array::from_iter_values(rows.iter().map(|(_, amount)| *amount)).with_data_type(DECIMAL)),
            "quantity" | "unit_price" => arrow::array::new_null_array(&DECIMAL, rows.len()),
            _ => arrow::array::new_null_array(&DataType::Utf8, rows.len()),
        })
        .collect();
    let fields: Vec<Field> =
        CHARGE_COLUMNS.iter().zip(&columns).map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn posting(month: i64, posted: i64, epoch: i64, published_before: bool) -> Posting {
    Posting {
        rule: "calls".into(),
        rule_version: "v".into(),
        reference_version: "r".into(),
        window: Window { start: month, end: month + 1 },
        billing_period: format!("2026-{month:02}"),
        posting_period: format!("2026-{:02}", posted.max(month)),
        epoch,
        rated_at: epoch,
        usage_version: 1,
        cause: "late usage".into(),
        published_before,
    }
}

async fn lines(ledger: &RecordBatch, mode: Rounding) -> Lines {
    let context = session(&SessionLimits::default()).unwrap();
    // Several partitions in no order, as the files of a table have them.
    let parts: Vec<Vec<RecordBatch>> = (0..3)
        .map(|part| {
            let rows: UInt32Array = (0..u32::try_from(ledger.num_rows()).unwrap()).rev().filter(|row| row % 3 == part).collect();
            vec![arrow::compute::take_record_batch(ledger, &rows).unwrap()]
        })
        .collect();
    context.register_table("charges", Arc::new(MemTable::try_new(ledger.schema(), parts).unwrap())).unwrap();
    for (name, sql) in views(mode) {
        context.register_table(name, context.sql(&sql).await.unwrap().into_view()).unwrap();
    }
    let sql =
        "SELECT customer_id, item, currency, billing_period, posting_period, amount, billed FROM invoice_lines ORDER BY posting_period";
    let mut lines = Lines::new();
    for batch in context.sql(sql).await.unwrap().collect().await.unwrap() {
        let text = |index: usize, row: usize| batch.column(index).as_string::<i32>().value(row).to_owned();
        let money = |index: usize, row: usize| {
            assert_eq!(*batch.column(index).data_type(), DECIMAL);
            Decimal::from_raw(batch.column(index).as_primitive::<Decimal128Type>().value(row)).unwrap()
        };
        for row in 0..batch.num_rows() {
            let postings = lines.entry([text(0, row), text(1, row), text(2, row), text(3, row)]).or_default();
            postings.push((text(4, row), money(5, row), money(6, row)));
        }
    }
    lines
}

/// Every posting period has billed, with those before it, what the line was worth by then, rounded; returns what the
/// months before `open` billed.
fn check(lines: &Lines, mode: Rounding, open: &str) -> Lines {
    let mut closed = Lines::new();
    for (line, postings) in lines {
        let currency: Currency = line[2].parse().unwrap();
        let (mut worth, mut billed) = (Decimal::default(), Decimal::default());
        for (posted, amount, part) in postings {
            worth = worth.plus(*amount).unwrap();
            billed = billed.plus(*part).unwrap();
            assert_eq!(billed, currency.round(worth, mode).unwrap(), "{line:?} up to {posted}, {}", mode.name());
            if posted.as_str() < open {
                closed.entry(line.clone()).or_default().push((posted.clone(), *amount, *part));
            }
        }
    }
    closed
}

#[tokio::test]
async fn a_thousand_corrections_over_closed_months_bill_the_rounded_sum_on_every_line() {
    let mut random = StdRng::seed_from_u64(26);
    let mut windows: BTreeMap<(i64, usize), RecordBatch> = BTreeMap::new();
    let (mut open, mut corrections, mut epoch) = (1_i64, 0, 0);
    let mut closed: BTreeMap<&str, Lines> = BTreeMap::new();
    while corrections < 1_000 {
        epoch += 1;
        let (month, customer) = (random.random_range(1..=6_i64), random.random_range(0..5_usize));
        let before = windows.get(&(month, customer)).cloned();
        let known = before.is_some();
        let before = before.unwrap_or_else(|| RecordBatch::new_empty(charges::schema(&[])));
        let new = charges_of(&format!("c{customer}"), &mut random);
        for rows in post(&before, &new, &posting(month, open, epoch, known)).unwrap() {
            corrections += usize::from(known);
            windows.insert((month, customer), concat_batches(&before.schema(), [&before, &rows]).unwrap());
        }
        if epoch % 100 == 0 {
            let schema = charges::schema(&[]);
            let ledger = concat_batches(&schema, windows.values()).unwrap();
            open = (open + 1).min(12);
            for mode in Rounding::ALL {
                let lines = lines(&ledger, mode).await;
                let billed = check(&lines, mode, &format!("2026-{open:02}"));
                for (line, postings) in closed.get(mode.name()).into_iter().flatten() {
                    assert!(billed[line].starts_with(postings), "what a closed month billed has changed: {line:?}");
                }
                closed.insert(mode.name(), billed);
            }
        }
    }
    assert!(open > 9 && closed["half_up"].len() > 80, "{open} {}", closed["half_up"].len());
}

#[tokio::test]
async fn a_filter_on_the_posting_period_does_not_forget_what_was_billed_before() {
    let mut random = StdRng::seed_from_u64(7);
    let empty = RecordBatch::new_empty(charges::schema(&[]));
    let first = post(&empty, &charges_of("c", &mut random), &posting(1, 1, 1, false)).unwrap().remove(0);
    let second = post(&first, &charges_of("c", &mut random), &posting(1, 4, 2, true)).unwrap().remove(0);
    let ledger = concat_batches(&first.schema(), [&first, &second]).unwrap();
    let context = session(&SessionLimits::default()).unwrap();
    context.register_table("charges", Arc::new(MemTable::try_new(ledger.schema(), vec![vec![ledger]]).unwrap())).unwrap();
    for (name, sql) in views(Rounding::HalfUp) {
        context.register_table(name, context.sql(&sql).await.unwrap().into_view()).unwrap();
    }
    let billed = async |filter: &str| {
        let sql = format!("SELECT sum(billed) FILTER (WHERE posting_period = '2026-04') FROM invoice_lines {filter}");
        context.sql(&sql).await.unwrap().collect().await.unwrap().remove(0).column(0).as_primitive::<Decimal128Type>().value(0)
    };
    assert_eq!(billed("").await, billed("WHERE posting_period = '2026-04'").await);
}

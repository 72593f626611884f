//! The usage events behind a charge: all are counted, the first are listed.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Decimal128Type, TimestampMicrosecondType};
use datafusion::common::{Column, DataFusionError, Result, TableReference, plan_datafusion_err};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use ratemill_schemas::Decimal;
use ratemill_schemas::time::format_instant;
use serde::Serialize;

use super::lineage::traced_name;

/// Columns of an event that are carried, in order.
pub(super) const COLUMNS: [&str; 6] = ["source", "id", "meter", "subject", "time", "quantity"];

/// A usage event behind a charge.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct UsageEvent {
    /// When it was used, RFC 3339 in UTC.
    pub time: String,
    /// CloudEvents `source`.
    pub source: String,
    /// CloudEvents `id`.
    pub id: String,
    /// The meter.
    pub meter: String,
    /// Who used it.
    pub subject: String,
    /// How much, exact.
    pub quantity: String,
    /// `usage`, or `opening` for the last event before the window.
    pub read_as: String,
}

/// All events of one meter behind a charge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventTotal {
    /// The meter.
    pub meter: String,
    /// `usage` or `opening`.
    pub read_as: String,
    /// How many.
    pub count: usize,
    /// The sum of their quantities, exact.
    pub quantity: String,
}

/// The events of one scan, with the name of the table that they were read as.
pub(super) fn of(plan: LogicalPlan, table: &TableReference) -> Result<LogicalPlan> {
    let mut columns: Vec<Expr> = COLUMNS.iter().map(|name| Expr::Column(Column::from_name(traced_name(name)))).collect();
    columns.push(lit(table.table()).alias("read as"));
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}

/// The events of several scans, each once.
pub(super) fn all(plans: Vec<Result<LogicalPlan>>) -> Result<LogicalPlan> {
    let mut plans = plans.into_iter();
    let first = plans.next().ok_or_else(|| plan_datafusion_err!("there is no scan of usage"))??;
    if plans.len() == 0 {
        // Distinct already.
        return Ok(first);
    }
    let mut all = LogicalPlanBuilder::from(first);
    for plan in plans {
        all = all.union(plan?)?;
    }
    all.distinct()?.build()
}

/// The first events by time, and the totals of all.
pub(super) async fn list(context: &SessionContext, plan: LogicalPlan, rows_max: usize) -> Result<(Vec<UsageEvent>, Vec<EventTotal>)> {
    let mut stream = context.execute_logical_plan(plan).await?.execute_stream().await?;
    let mut first: BTreeMap<(i64, String, String, String), UsageEvent> = BTreeMap::new();
    let mut totals: BTreeMap<(String, String), (usize, Decimal)> = BTreeMap::new();
    while let Some(batch) = stream.try_next().await? {
        let rows = Rows::of(&batch);
        for row in 0..batch.num_rows() {
            let total = totals.entry((rows.text(2, row), rows.text(6, row))).or_default();
            total.0 += 1;
            total.1 = total.1.plus(rows.quantity(row)?).map_err(|error| DataFusionError::External(error.into()))?;
            let (time, event) = rows.event(row)?;
            let key = (time, event.source.clone(), event.id.clone(), event.read_as.clone());
            if first.len() < rows_max || first.last_key_value().is_some_and(|(last, _)| key < *last) {
                first.insert(key, event);
                if first.len() > rows_max {
                    first.pop_last();
                }
            }
        }
    }
    let totals = totals.into_iter().map(|((meter, read_as), (count, quantity))| EventTotal {
        meter,
        read_as,
        count,
        quantity: quantity.to_string(),
    });
    Ok((first.into_values().collect(), totals.collect()))
}

/// The columns of [`of`].
struct Rows<'a>(&'a RecordBatch);

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch) -> Self {
        Self(batch)
    }

    fn text(&self, column: usize, row: usize) -> String {
        let column = self.0.column(column);
        let texts = column.as_string_opt::<i32>();
        texts.filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned()).unwrap_or_default()
    }

    fn quantity(&self, row: usize) -> Result<Decimal> {
        let quantities = self.0.column(5).as_primitive::<Decimal128Type>();
        if quantities.is_null(row) {
            return Ok(Decimal::default());
        }
        Decimal::from_raw(quantities.value(row)).map_err(|error| DataFusionError::External(error.into()))
    }

    fn event(&self, row: usize) -> Result<(i64, UsageEvent)> {
        let time = self.0.column(4).as_primitive::<TimestampMicrosecondType>().value(row);
        let event = UsageEvent {
            time: format_instant(time),
            source: self.text(0, row),
            id: self.text(1, row),
            meter: self.text(2, row),
            subject: self.text(3, row),
            quantity: self.quantity(row)?.to_string(),
            read_as: self.text(6, row),
        };
        Ok((time, event))
    }
}

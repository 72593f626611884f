//! The windowed tables of a rule as slots, and what fills them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, new_null_array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use datafusion::common::config::ConfigOptions;
use datafusion::common::{Column, Result, TableReference, plan_datafusion_err};
use datafusion::logical_expr::{ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs};
use ratemill_schemas::time::{day_of, instant_type};
use ratemill_schemas::{UsageSchema, WindowSpec};

use super::slots::{Slot, WINDOW};
use crate::evaluate::contracts_in;
use crate::inputs::{ARRIVAL, Input};
use crate::lift::Sources;
use crate::project::RuleProject;
use crate::rule::{Rule, RuleWindow};
use crate::window_set::{Lookup, WindowSet, lookup_function};

/// Gives the lifter slots instead of tables.
pub(super) struct SlotSources<'a> {
    pub(super) project: &'a RuleProject,
    pub(super) rule: &'a Rule,
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

impl Sources for SlotSources<'_> {
    fn is_windowed(&self, table: &TableReference) -> bool {
        (table.table() == "contracts" && by_contract(self.rule)) || self.rule.inputs.iter().any(|(input, _)| input.table() == *table)
    }

    fn windowed(&self, table: &TableReference, window: &str) -> Result<LogicalPlan> {
        let Some((index, (input, schema))) = self.rule.inputs.iter().enumerate().find(|(_, (input, _))| input.table() == *table) else {
            let contracts = self.project.reference.table("contracts").ok_or_else(|| plan_datafusion_err!("there are no contracts"))?;
            return contracts_in(contracts, self.rows(&["window_start", "window_end", "contract_id"], window)?, window);
        };
        let (slot, schema) = match input {
            Input::Usage => (Slot::Usage, usage_schema(&self.project.usage)),
            Input::BillingWindow => return self.rows(&["window_start", "window_end"], window),
            Input::Opening => (Slot::Opening, opening_schema(&self.project.usage)),
            Input::Upstream(_) | Input::Earlier(_) => (Slot::Charges(index), charges_schema(schema)),
        };
        let scan = slot.scan("", &schema)?;
        let columns: Vec<Expr> = schema
            .fields()
            .iter()
            .map(|field| if field.name() == WINDOW { column(WINDOW).alias(window) } else { column(field.name()) })
            .collect();
        scan.project(columns)?.build()
    }

    fn windows(&self, window: &str) -> Result<LogicalPlan> {
        self.rows(&[], window)
    }
}

impl SlotSources<'_> {
    /// One row for each window: these columns and its number.
    fn rows(&self, columns: &[&str], window: &str) -> Result<LogicalPlan> {
        let mut kept: Vec<Expr> = columns.iter().map(|name| column(name)).collect();
        kept.push(column(WINDOW).alias(window));
        Slot::Windows.scan(window, &windows_schema())?.project(kept)?.build()
    }
}

pub(super) fn by_contract(rule: &Rule) -> bool {
    rule.options.window == WindowSpec::BillingPeriod
}

fn numbered(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields.into_iter().chain([Field::new(WINDOW, DataType::Int64, false)]).collect::<Vec<_>>()))
}

/// Usage with the window of each event. What says when an event arrived is null where the batch does not have it.
pub(super) fn usage_schema(usage: &UsageSchema) -> SchemaRef {
    let arrival = |field: &Field| ARRIVAL.contains(&field.name().as_str());
    numbered(
        usage.stored().fields().iter().map(|field| field.as_ref().clone().with_nullable(field.is_nullable() || arrival(field))).collect(),
    )
}

/// The same for `opening`, of which only the columns are kept that the query reads.
pub(super) fn opening_schema(usage: &UsageSchema) -> SchemaRef {
    Arc::new(Schema::new(
        usage_schema(usage).fields().iter().map(|field| field.as_ref().clone().with_nullable(field.name() != WINDOW)).collect::<Vec<_>>(),
    ))
}

fn windows_schema() -> SchemaRef {
    numbered(vec![
        Field::new("window_start", instant_type(), false),
        Field::new("window_end", instant_type(), false),
        Field::new("contract_id", DataType::Utf8, true),
    ])
}

fn charges_schema(charges: &SchemaRef) -> SchemaRef {
    numbered(charges.fields().iter().map(|field| field.as_ref().clone()).collect())
}

/// The rows of the slot of windows.
pub(super) fn windows_rows(windows: &BTreeMap<i64, RuleWindow>) -> Result<RecordBatch> {
    let instants = |values: Vec<i64>| Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) as ArrayRef;
    let columns = vec![
        instants(windows.values().map(|rated| rated.window.start).collect()),
        instants(windows.values().map(|rated| rated.window.end).collect()),
        Arc::new(windows.values().map(|rated| rated.contract_id.clone()).collect::<StringArray>()) as ArrayRef,
        Arc::new(Int64Array::from_iter_values(windows.keys().copied())),
    ];
    Ok(RecordBatch::try_new(windows_schema(), columns)?)
}

/// The rows of the slot of usage: `usage` has the columns of an event, and maybe those that say when it arrived.
pub(super) fn usage_rows(usage: &RecordBatch, windows: Vec<i64>, schema: &SchemaRef) -> Result<RecordBatch> {
    let rows = usage.num_rows();
    let column = |field: &Field| -> Result<ArrayRef> {
        match (usage.column_by_name(field.name()), field.name().as_str()) {
            (Some(column), _) => Ok(Arc::clone(column)),
            (None, "day") => Ok(Arc::new(Date32Array::from_iter_values(times(usage)?.values().iter().map(|time| day_of(*time))))),
            (None, _) if field.is_nullable() => Ok(new_null_array(field.data_type(), rows)),
            (None, name) => Err(plan_datafusion_err!("usage has no column `{name}`")),
        }
    };
    let (_, known) = schema.fields().split_last().ok_or_else(|| plan_datafusion_err!("usage has no columns"))?;
    let mut columns = known.iter().map(|field| column(field)).collect::<Result<Vec<_>>>()?;
    columns.push(Arc::new(Int64Array::from(windows)));
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

pub(super) fn times(usage: &RecordBatch) -> Result<&arrow::array::PrimitiveArray<TimestampMicrosecondType>> {
    let column = usage.column_by_name("time").and_then(|column| column.as_primitive_opt());
    column.ok_or_else(|| plan_datafusion_err!("usage has no column `time`"))
}

/// The target of each event, null where it belongs to none.
pub(super) fn targets_of_usage(usage: &RecordBatch, set: &Arc<WindowSet>) -> Result<Int64Array> {
    let names: &[&str] = if set.by_contract() { &["time", "subject"] } else { &["time"] };
    let columns =
        names.iter().map(|name| usage.column_by_name(name).cloned().ok_or_else(|| plan_datafusion_err!("usage has no column `{name}`")));
    let columns = columns.collect::<Result<Vec<_>>>()?;
    Ok(look_up(Lookup::Holding, set, columns, usage.num_rows())?.as_primitive::<Int64Type>().clone())
}

/// The rows of a slot of charges: each with the target that it is inside of, or once for each target that it is before.
pub(super) fn charges_rows(charges: &RecordBatch, input: &Input, set: &Arc<WindowSet>) -> Result<RecordBatch> {
    let mut columns = vec![Arc::clone(charges.column(0)), Arc::clone(charges.column(1))];
    if set.by_contract() {
        let contract = charges.column_by_name("contract_id").cloned();
        columns.push(contract.unwrap_or_else(|| new_null_array(&DataType::Utf8, charges.num_rows())));
    }
    let lookup = if matches!(input, Input::Earlier(_)) { Lookup::After } else { Lookup::Inside };
    let found = look_up(lookup, set, columns, charges.num_rows())?;
    numbered_rows(charges, &found, &charges_schema(&charges.schema()))
}

/// Each of these rows with its number, or once for each number of a list.
pub(super) fn numbered_rows(rows: &RecordBatch, found: &ArrayRef, schema: &SchemaRef) -> Result<RecordBatch> {
    let (mut kept, mut numbers) = (Vec::new(), Vec::new());
    for row in 0..rows.num_rows() {
        let of_row = match found.as_list_opt::<i32>() {
            Some(lists) => lists.value(row).as_primitive::<Int64Type>().clone(),
            None => found.as_primitive::<Int64Type>().slice(row, 1),
        };
        for number in of_row.iter().flatten() {
            kept.push(u32::try_from(row).map_err(|_| plan_datafusion_err!("too many rows"))?);
            numbers.push(number);
        }
    }
    let taken = take_record_batch(rows, &UInt32Array::from(kept))?;
    let mut columns = taken.columns().to_vec();
    columns.push(Arc::new(Int64Array::from(numbers)));
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

pub(super) fn look_up(lookup: Lookup, set: &Arc<WindowSet>, columns: Vec<ArrayRef>, rows: usize) -> Result<ArrayRef> {
    let function = lookup_function(lookup, set);
    let arg_fields: Vec<_> = columns.iter().map(|column| Arc::new(Field::new("argument", column.data_type().clone(), true))).collect();
    let return_type = function.inner().return_type(&[])?;
    let arguments = ScalarFunctionArgs {
        args: columns.into_iter().map(ColumnarValue::Array).collect(),
        arg_fields,
        number_rows: rows,
        return_field: Arc::new(Field::new("number", return_type, true)),
        config_options: Arc::new(ConfigOptions::new()),
    };
    function.inner().invoke_with_args(arguments)?.into_array(rows)
}

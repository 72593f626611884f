//! A rule's output in the columns of the ledger, with every row checked.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use ratemill_schemas::decimal::{DECIMAL, Decimal};
use ratemill_schemas::time::format_instant;
use ratemill_schemas::{Currency, Window, WindowSpec};

use super::RateError;
use super::blame::Blame;
use super::identity::{Identities, surely_distinct};
use crate::rule::Rule;

/// Brings a rule's output into the columns of the ledger and checks every row.
pub(super) struct Shaper<'a> {
    pub(super) rule: &'a Rule,
    pub(super) window: Window,
}

/// Columns that a rule's output has in the ledger, before its further columns.
pub const CHARGE_COLUMNS: [&str; 9] =
    ["customer_id", "contract_id", "item", "currency", "amount", "quantity", "unit", "unit_price", "detail"];

/// Further columns that are part of a charge's identity: every one that is no decimal.
#[must_use]
pub fn is_identity(data_type: &DataType) -> bool {
    !matches!(data_type, DataType::Decimal128(..))
}

/// The type in which the ledger stores a further column.
#[must_use]
pub fn stored_type(data_type: &DataType) -> DataType {
    match data_type {
        other if other.is_string() || other.is_null() => DataType::Utf8,
        other if other.is_integer() => DataType::Int64,
        DataType::Timestamp(..) => ratemill_schemas::time::instant_type(),
        DataType::Decimal128(..) => DECIMAL,
        other => other.clone(),
    }
}

impl Shaper<'_> {
    /// Charges of a billing period are those of its contract.
    pub(super) fn of_contract(&self, output: &RecordBatch, contract: &str) -> Result<(), RateError> {
        let blame = |row: Option<usize>| Blame { contract: Some(contract.to_owned()), ..self.whose(output, row) };
        let Some(found) = output.column_by_name("contract_id") else {
            let message = "a rule of billing periods returns contract_id, which says whose period it is";
            let blame = Blame { contract: Some(contract.to_owned()), ..Blame::default() };
            return Err(self.failed(blame, message.to_owned()));
        };
        let found = convert_rows("contract_id", found, &DataType::Utf8).map_err(|(row, message)| self.failed(blame(row), message))?;
        match found.as_string::<i32>().iter().position(|found| found != Some(contract)) {
            Some(row) => {
                let other = found.as_string::<i32>();
                let other = if other.is_null(row) { "null".to_owned() } else { format!("`{}`", other.value(row)) };
                let message =
                    format!("contract_id is {other} in the billing period of contract `{contract}`; return the contract's own id");
                Err(self.failed(blame(Some(row)), message))
            }
            None => Ok(()),
        }
    }

    /// Whose the charge in a row of the query's output is.
    fn whose(&self, output: &RecordBatch, row: Option<usize>) -> Blame {
        let Some(row) = row else { return Blame::default() };
        let text = |name: &str| {
            let column = output.column_by_name(name)?.slice(row, 1);
            let text = arrow::compute::cast(&column, &DataType::Utf8).ok()?;
            text.is_valid(0).then(|| text.as_string::<i32>().value(0).to_owned()).filter(|text| !text.trim().is_empty())
        };
        let by_contract = self.rule.options.window == WindowSpec::BillingPeriod;
        let customer = text("customer_id");
        Blame { contract: text("contract_id").filter(|_| by_contract || customer.is_none()), customer, subject: None }
    }

    /// No charges, in the columns of the rule.
    pub(super) fn empty(&self) -> RecordBatch {
        let nothing = RecordBatch::new_empty(Arc::new(Schema::empty()));
        self.shape(&nothing).unwrap_or(nothing)
    }

    pub(super) fn shape(&self, batch: &RecordBatch) -> Result<RecordBatch, RateError> {
        let mut fields = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        let converted = |name: &str, column: &ArrayRef, to: &DataType| {
            convert_rows(name, column, to).map_err(|(row, message)| self.failed(self.whose(batch, row), message))
        };
        for name in CHARGE_COLUMNS {
            let data_type = if matches!(name, "amount" | "quantity" | "unit_price") { DECIMAL } else { DataType::Utf8 };
            let column = match batch.column_by_name(name) {
                Some(column) => converted(name, column, &data_type)?,
                None => arrow::array::new_null_array(&data_type, batch.num_rows()),
            };
            fields.push(Field::new(name, data_type, true));
            columns.push(column);
        }
        for output in self.rule.further_columns() {
            let data_type = stored_type(&output.data_type);
            columns.push(match batch.column_by_name(&output.name) {
                Some(column) => converted(&output.name, column, &data_type)?,
                None => arrow::array::new_null_array(&data_type, batch.num_rows()),
            });
            fields.push(Field::new(&output.name, data_type, true));
        }
        let shaped = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
            .map_err(|error| self.failed(Blame::default(), error.to_string()))?;
        self.check(&shaped)?;
        Ok(shaped)
    }

    /// Whether every row is sound, told from whole columns; where it is not, or not for sure, the rows say what is wrong.
    fn is_sound(&self, charges: &RecordBatch) -> Result<bool, arrow::error::ArrowError> {
        let by_contract = self.rule.options.window == WindowSpec::BillingPeriod;
        let required = [0, 2, 3, 4].into_iter().chain(by_contract.then_some(1));
        if required.into_iter().any(|index| charges.column(index).null_count() > 0) {
            return Ok(false);
        }
        let text = |index: usize| charges.column(index).as_string::<i32>();
        if [0, 2].into_iter().any(|index| text(index).iter().flatten().any(|value| value.trim().is_empty())) {
            return Ok(false);
        }
        let mut last = "";
        for currency in text(3).iter().flatten() {
            if currency != last && currency.parse::<Currency>().is_err() {
                return Ok(false);
            }
            last = currency;
        }
        let decimals = charges.columns().iter().filter_map(|column| column.as_primitive_opt::<Decimal128Type>());
        for column in decimals {
            if column.iter().flatten().any(|raw| Decimal::from_raw(raw).is_err()) {
                return Ok(false);
            }
        }
        surely_distinct(charges)
    }

    fn check(&self, charges: &RecordBatch) -> Result<(), RateError> {
        let sound = self.is_sound(charges).map_err(|error| self.failed(Blame::default(), error.to_string()))?;
        if sound { Ok(()) } else { self.check_rows(charges) }
    }

    fn check_rows(&self, charges: &RecordBatch) -> Result<(), RateError> {
        let text = |index: usize| charges.column(index).as_string::<i32>();
        let (customers, items, currencies) = (text(0), text(2), text(3));
        let amounts = charges.column(4).as_primitive::<Decimal128Type>();
        let mut known: HashMap<String, usize> = HashMap::with_capacity(charges.num_rows());
        let mut valid_currencies: HashMap<&str, ()> = HashMap::new();
        let mut identities = Identities::of(charges);
        for row in 0..charges.num_rows() {
            let customer = if customers.is_null(row) { "?" } else { customers.value(row) };
            let failed = |message: String| self.failed(self.whose(charges, Some(row)), message);
            let contract_missing = self.rule.options.window == WindowSpec::BillingPeriod && text(1).is_null(row);
            for (name, null) in [
                ("contract_id", contract_missing),
                ("customer_id", customers.is_null(row)),
                ("item", items.is_null(row)),
                ("currency", currencies.is_null(row)),
                ("amount", amounts.is_null(row)),
            ] {
                if null {
                    return Err(failed(format!(
                        "`{name}` is null; every charge has one (a sum over no rows is null: write coalesce(sum(…), 0))"
                    )));
                }
            }
            for (name, value) in [("customer_id", customer), ("item", items.value(row))] {
                if value.trim().is_empty() {
                    return Err(failed(format!("`{name}` is empty; every charge has one")));
                }
            }
            let currency = currencies.value(row);
            if !valid_currencies.contains_key(currency) {
                currency.parse::<Currency>().map_err(|error| failed(error.to_string()))?;
                valid_currencies.insert(currency, ());
            }
            for column in charges.columns() {
                if let DataType::Decimal128(..) = column.data_type() {
                    let decimals = column.as_primitive::<Decimal128Type>();
                    if decimals.is_valid(row) {
                        Decimal::from_raw(decimals.value(row)).map_err(|error| failed(format!("a decimal {error}")))?;
                    }
                }
            }
            let mut identity = String::new();
            identities.write(row, &mut identity);
            if let Some(other) = known.insert(identity, row) {
                let message = format!(
                    "two charges of the same identity (customer `{customer}`, item `{}`, currency {currency}): {} and {}; group them, or tell them apart by item or a further column",
                    items.value(row),
                    show(amounts.value(other)),
                    show(amounts.value(row)),
                );
                return Err(failed(message));
            }
        }
        Ok(())
    }

    pub(super) fn failed(&self, blame: Blame, message: String) -> RateError {
        RateError::Charge { rule: self.rule.name.clone(), window: self.window, blame: Box::new(blame), message }
    }
}

/// The column in another type; or why it has none, and the first row for which that is so, unless it is so for any.
fn convert_rows(name: &str, column: &ArrayRef, to: &DataType) -> Result<ArrayRef, (Option<usize>, String)> {
    convert(name, column, to).map_err(|message| {
        let fails = |start: usize, rows: usize| convert(name, &column.slice(start, rows), to).is_err();
        let row = (0..column.len()).find(|row| fails(*row, 1)).filter(|_| !fails(0, 0));
        (row, message)
    })
}

fn convert(name: &str, column: &ArrayRef, to: &DataType) -> Result<ArrayRef, String> {
    if let DataType::Decimal128(_, scale) = column.data_type()
        && *to == DECIMAL
        && *scale > ratemill_schemas::decimal::SCALE
    {
        return Err(format!("`{name}` has {scale} places; round it to 18"));
    }
    if let Some(lists) = column.as_list_opt::<i32>() {
        return lists_as_json(lists).map_err(|error| format!("`{name}`: {error}"));
    }
    if *to == DECIMAL && column.data_type().is_string() {
        // A cast would round what does not fit.
        return Err(format!("`{name}` is a text; it must be an exact number"));
    }
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    arrow::compute::cast_with_options(column, to, &options).map_err(|error| format!("`{name}`: {error}"))
}

/// Each list as JSON text: structs as objects, decimals as exact text, nulls left out.
fn lists_as_json(lists: &ListArray) -> Result<ArrayRef, arrow::error::ArrowError> {
    let texts: StringArray = (0..lists.len())
        .map(|row| {
            if lists.is_null(row) {
                return Ok(None);
            }
            let elements = lists.value(row);
            let values: Result<Vec<serde_json::Value>, _> = (0..elements.len()).map(|element| as_json(&elements, element)).collect();
            Ok(Some(serde_json::Value::Array(values?).to_string()))
        })
        .collect::<Result<_, arrow::error::ArrowError>>()?;
    Ok(Arc::new(texts))
}

pub(super) fn as_json(array: &ArrayRef, row: usize) -> Result<serde_json::Value, arrow::error::ArrowError> {
    if array.is_null(row) {
        return Ok(serde_json::Value::Null);
    }
    Ok(match array.data_type() {
        DataType::Struct(fields) => {
            let members = array.as_struct();
            let mut object = serde_json::Map::new();
            for (field, column) in fields.iter().zip(members.columns()) {
                if column.is_valid(row) {
                    object.insert(field.name().clone(), as_json(column, row)?);
                }
            }
            serde_json::Value::Object(object)
        }
        DataType::Decimal128(_, 18) => show(array.as_primitive::<Decimal128Type>().value(row)).into(),
        DataType::Int64 => array.as_primitive::<arrow::datatypes::Int64Type>().value(row).into(),
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Timestamp(..) => format_instant(array.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(row)).into(),
        _ => ArrayFormatter::try_new(array, &FormatOptions::default())?.value(row).to_string().into(),
    })
}

fn show(raw: i128) -> String {
    Decimal::from_raw(raw).map_or_else(|_| raw.to_string(), |value| value.to_string())
}

//! Binds plain functions over decimals, instants and lists to SQL: argument types, nulls, defaults and errors in one
//! place, so that a pricing function is a line in a table and a formula.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Decimal128Array, Int64Array, ListArray, StructArray, TimestampMicrosecondArray,
    make_comparator,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Field, FieldRef, Fields, Int64Type, TimestampMicrosecondType};
use datafusion::common::{Result, exec_datafusion_err, exec_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use ratemill_schemas::decimal::DECIMAL;
use ratemill_schemas::time::instant_type;
use ratemill_schemas::{Decimal, WindowSpec};

use super::arithmetic::is_exact_number;
use crate::pricing::PricingError;
use crate::pricing::days::Buckets;

/// The zone where none is given.
const UTC: &str = "UTC";

/// What an argument or a result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Number,
    Integer,
    Text,
    Boolean,
    Instant,
    Date,
    /// A list of structs with these members.
    List(&'static [(&'static str, Kind)]),
    /// A list of dates.
    Dates,
}

/// Whether an argument must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// A null makes the result null.
    Given,
    /// It is given, and a null has a meaning of its own.
    Nullable,
    /// It may be left out; a null is the same as leaving it out.
    Optional,
}

/// A parameter of a function.
pub(super) type Parameter = (&'static str, Kind, Need);

/// A value of a result row.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Number(Decimal),
    Integer(i64),
    Boolean(bool),
    Instant(i64),
    Date(Date),
    Rows(Vec<Vec<Value>>),
}

/// A function of rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct Definition {
    pub(super) name: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) result: Kind,
    pub(super) call: fn(&Row<'_>) -> Result<Value, PricingError>,
}

impl Kind {
    fn data_type(self) -> DataType {
        match self {
            Self::Number => DECIMAL,
            Self::Integer => DataType::Int64,
            Self::Text => DataType::Utf8,
            Self::Boolean => DataType::Boolean,
            Self::Instant => instant_type(),
            Self::Date => DataType::Date32,
            Self::Dates => DataType::List(Arc::new(Field::new_list_field(DataType::Date32, true))),
            Self::List(members) => DataType::List(element(members)),
        }
    }

    pub(super) fn accepts(self, given: &DataType) -> bool {
        given.is_null()
            || match self {
                Self::Number => is_exact_number(given),
                Self::Integer => given.is_integer(),
                Self::Text => given.is_string(),
                Self::Boolean => *given == DataType::Boolean,
                Self::Instant => matches!(given, DataType::Timestamp(_, Some(_))),
                Self::Date => *given == DataType::Date32,
                Self::Dates => matches!(given, DataType::List(field) if *field.data_type() == DataType::Date32),
                Self::List(members) => has_members(given, members),
            }
    }

    pub(super) fn describe(self) -> String {
        match self {
            Self::Number => "an exact number".to_owned(),
            Self::Integer => "a whole number".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::Boolean => "true or false".to_owned(),
            Self::Instant => "an instant".to_owned(),
            Self::Date => "a date".to_owned(),
            Self::Dates => "a list of dates".to_owned(),
            Self::List(members) => {
                let names: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
                format!("a list of {} from a reference table", names.join(", "))
            }
        }
    }
}

fn element(members: &[(&str, Kind)]) -> FieldRef {
    let fields: Fields = members.iter().map(|(name, kind)| Field::new(*name, kind.data_type(), true)).collect();
    Arc::new(Field::new_list_field(DataType::Struct(fields), true))
}

fn has_members(given: &DataType, members: &[(&str, Kind)]) -> bool {
    let DataType::List(field) = given else { return false };
    let DataType::Struct(fields) = field.data_type() else { return false };
    members.iter().all(|(name, kind)| fields.iter().any(|field| field.name() == name && kind.accepts(field.data_type())))
}

/// One row of arguments; `Given` ones are never null here.
pub(super) struct Row<'a> {
    arguments: &'a [ArrayRef],
    row: usize,
    parsed: &'a Parsed,
}

/// What was read from texts and lists before: neighbouring rows mostly have the same.
#[derive(Default)]
pub(super) struct Parsed {
    /// The zone that was read last, by its name.
    zone: RefCell<Option<(String, TimeZone)>>,
    /// The buckets that were read last, by the texts of length and zone.
    buckets: RefCell<Option<([String; 2], Buckets)>>,
    lists: RefCell<HashMap<usize, LastList>>,
}

/// The list of one argument that was read last.
struct LastList {
    row: usize,
    parsed: Arc<dyn std::any::Any + Send + Sync>,
    /// Whether the lists of two rows are the same, where their type can be compared.
    same: Option<Same>,
}

impl Row<'_> {
    fn is_given(&self, index: usize) -> bool {
        self.arguments.get(index).is_some_and(|column| !column.is_null(self.row) && *column.data_type() != DataType::Null)
    }

    pub(super) fn number_or_none(&self, index: usize) -> Result<Option<Decimal>, PricingError> {
        if !self.is_given(index) {
            return Ok(None);
        }
        let raw = self.arguments[index].as_primitive::<Decimal128Type>().value(self.row);
        Decimal::from_raw(raw).map(Some).map_err(|error| PricingError::Number { what: "a decimal".to_owned(), error })
    }

    pub(super) fn number(&self, index: usize) -> Result<Decimal, PricingError> {
        self.number_or_none(index).map(Option::unwrap_or_default)
    }

    pub(super) fn integer(&self, index: usize) -> Option<i64> {
        self.is_given(index).then(|| self.arguments[index].as_primitive::<Int64Type>().value(self.row))
    }

    pub(super) fn text(&self, index: usize) -> Option<&str> {
        self.is_given(index).then(|| self.arguments[index].as_string::<i32>().value(self.row))
    }

    /// A word with a default.
    pub(super) fn word<T: std::str::FromStr<Err = PricingError> + Default>(&self, index: usize) -> Result<T, PricingError> {
        self.text(index).map_or_else(|| Ok(T::default()), str::parse)
    }

    pub(super) fn is_true(&self, index: usize) -> bool {
        self.is_given(index) && self.arguments[index].as_boolean().value(self.row)
    }

    pub(super) fn instant(&self, index: usize) -> Option<i64> {
        self.is_given(index).then(|| self.arguments[index].as_primitive::<TimestampMicrosecondType>().value(self.row))
    }

    pub(super) fn date(&self, index: usize) -> Result<Option<Date>, PricingError> {
        if !self.is_given(index) {
            return Ok(None);
        }
        date_of(self.arguments[index].as_primitive::<Date32Type>().value(self.row)).map(Some)
    }

    /// The zone of an IANA name.
    pub(super) fn zone(&self, index: usize) -> Result<TimeZone, PricingError> {
        let name = self.text(index).unwrap_or(UTC);
        let mut last = self.parsed.zone.borrow_mut();
        if let Some((known, zone)) = last.as_ref()
            && known == name
        {
            return Ok(zone.clone());
        }
        let zone = ratemill_schemas::windows::zone(name)?;
        *last = Some((name.to_owned(), zone.clone()));
        Ok(zone)
    }

    /// Start of the bucket that holds `instant`; the length and the zone are arguments.
    pub(super) fn bucket_start(&self, length: usize, zone: usize, instant: i64) -> Result<i64, PricingError> {
        let texts = [self.text(length).unwrap_or_default(), self.text(zone).unwrap_or(UTC)];
        let mut last = self.parsed.buckets.borrow_mut();
        if let Some((known, buckets)) = last.as_mut()
            && *known == texts
        {
            return buckets.start_of(instant);
        }
        let (_, buckets) = last.insert((texts.map(str::to_owned), Buckets::new(WindowSpec::parse(texts[0], self.zone(zone)?)?)));
        buckets.start_of(instant)
    }

    /// A list as `read` makes it of its elements; the same list in the next row is not read again.
    pub(super) fn list<T: Send + Sync + 'static>(
        &self,
        index: usize,
        read: impl Fn(&Elements<'_>) -> Result<T, PricingError>,
    ) -> Result<Option<Arc<T>>, PricingError> {
        if !self.is_given(index) {
            return Ok(None);
        }
        let lists = self.arguments[index].as_list::<i32>();
        let mut known = self.parsed.lists.borrow_mut();
        if let Some(last) = known.get(&index)
            && last.same.as_ref().is_some_and(|same| same(last.row, self.row))
            && let Ok(parsed) = Arc::clone(&last.parsed).downcast::<T>()
        {
            return Ok(Some(parsed));
        }
        let list = lists.value(self.row);
        let parsed = Arc::new(read(&Elements { structs: list.as_struct() })?);
        let same = known.remove(&index).map_or_else(|| same_lists(lists), |last| last.same);
        let last = LastList { row: self.row, parsed: Arc::<T>::clone(&parsed), same };
        known.insert(index, last);
        Ok(Some(parsed))
    }
}

/// Whether two rows of a list argument are the same list.
type Same = Box<dyn Fn(usize, usize) -> bool>;

/// Compares the bytes of lists whose members have a fixed width, else value by value. It is made once for all rows.
fn same_lists(lists: &ListArray) -> Option<Same> {
    let by_value = || {
        let compare = make_comparator(lists, lists, SortOptions::default()).ok()?;
        Some(Box::new(move |one, other| compare(one, other).is_eq()) as Same)
    };
    let members: Option<Vec<(Buffer, usize, Option<NullBuffer>)>> = match lists.values().as_struct_opt() {
        Some(structs) if structs.null_count() == 0 => structs.columns().iter().map(fixed_width).collect(),
        _ => None,
    };
    let Some(members) = members else { return by_value() };
    let offsets = lists.offsets().clone();
    Some(Box::new(move |one, other| {
        let range = |row: usize| offsets[row] as usize..offsets[row + 1] as usize;
        let (one, other) = (range(one), range(other));
        one.len() == other.len()
            && members.iter().all(|(bytes, width, nulls)| {
                let of = |range: &Range<usize>| &bytes[range.start * width..range.end * width];
                let null = |index: usize| nulls.as_ref().is_some_and(|nulls| nulls.is_null(index));
                of(&one) == of(&other) && one.clone().zip(other.clone()).all(|(one, other)| null(one) == null(other))
            })
    }))
}

/// The bytes of the values of a column, their width, and which are null; `None` where values have no fixed width.
fn fixed_width(column: &ArrayRef) -> Option<(Buffer, usize, Option<NullBuffer>)> {
    let width = column.data_type().primitive_width()?;
    let data = column.to_data();
    let bytes = data.buffers().first()?.slice_with_length(data.offset() * width, data.len() * width);
    Some((bytes, width, column.nulls().cloned()))
}

/// The elements of a list argument.
pub(super) struct Elements<'a> {
    structs: &'a StructArray,
}

impl Elements<'_> {
    pub(super) fn len(&self) -> usize {
        self.structs.len()
    }

    fn member(&self, name: &str) -> Option<&ArrayRef> {
        self.structs.column_by_name(name)
    }

    pub(super) fn number(&self, name: &str, row: usize) -> Result<Option<Decimal>, PricingError> {
        let Some(column) = self.member(name).filter(|column| column.is_valid(row)) else { return Ok(None) };
        let decimal = match column.data_type() {
            DataType::Int64 => Ok(Decimal::from_integer(column.as_primitive::<Int64Type>().value(row))),
            _ => Decimal::from_raw(column.as_primitive::<Decimal128Type>().value(row)),
        };
        decimal.map(Some).map_err(|error| PricingError::Number { what: name.to_owned(), error })
    }

    pub(super) fn text(&self, name: &str, row: usize) -> &str {
        self.member(name).filter(|column| column.is_valid(row)).map_or("", |column| column.as_string::<i32>().value(row))
    }

    pub(super) fn date(&self, name: &str, row: usize) -> Result<Option<Date>, PricingError> {
        let Some(column) = self.member(name).filter(|column| column.is_valid(row)) else { return Ok(None) };
        date_of(column.as_primitive::<Date32Type>().value(row)).map(Some)
    }
}

fn date_of(days: i32) -> Result<Date, PricingError> {
    Date::new(1970, 1, 1)
        .and_then(|epoch| epoch.checked_add(jiff::Span::new().try_days(days)?))
        .map_err(|_| PricingError::OutOfCalendar(format!("day {days} since 1970")))
}

fn days_of(date: Date) -> i32 {
    let epoch = Date::constant(1970, 1, 1);
    i32::try_from(epoch.duration_until(date).as_hours() / 24).unwrap_or(i32::MAX)
}

/// A definition as DataFusion calls it.
#[derive(Debug)]
struct Bound {
    definition: &'static Definition,
    signature: Signature,
}

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        self.definition.name == other.definition.name
    }
}

impl Eq for Bound {}

impl Hash for Bound {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.definition.name.hash(state);
    }
}

/// The SQL function of a definition.
pub(super) fn bind(definition: &'static Definition) -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(Bound { definition, signature: Signature::user_defined(Volatility::Immutable) }))
}

impl Definition {
    /// `graduated(quantity, tiers [, flat_on_zero])`.
    fn usage(&self) -> String {
        let mut text = format!("{}(", self.name);
        let mut open = 0;
        for (index, (name, _, need)) in self.parameters.iter().enumerate() {
            if *need == Need::Optional {
                text.push_str(if index == 0 { "[" } else { " [, " });
                open += 1;
            } else if index > 0 {
                text.push_str(", ");
            }
            text.push_str(name);
        }
        text + &"]".repeat(open) + ")"
    }
}

impl ScalarUDFImpl for Bound {
    fn name(&self) -> &str {
        self.definition.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let Definition { name, parameters, .. } = self.definition;
        let needed = parameters.iter().filter(|(.., need)| *need != Need::Optional).count();
        if types.len() < needed || types.len() > parameters.len() {
            return plan_err!("{name} has {} arguments: write {}", types.len(), self.definition.usage());
        }
        types
            .iter()
            .zip(*parameters)
            .map(|(given, (parameter, kind, _))| {
                if !kind.accepts(given) {
                    return plan_err!("{name}: `{parameter}` is {}, not {given}: write {}", kind.describe(), self.definition.usage());
                }
                // Lists stay as their reference table has them; members are found by name.
                Ok(if matches!(kind, Kind::List(_) | Kind::Dates) { given.clone() } else { kind.data_type() })
            })
            .collect()
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.definition.result.data_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Definition { name, parameters, result, call } = self.definition;
        let scalar = args.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { args.number_rows };
        let arguments: Vec<ArrayRef> = args.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<_>>()?;
        let given = arguments.iter().zip(*parameters).filter(|(_, (.., need))| *need == Need::Given).map(|(argument, _)| argument);
        let missing = NullBuffer::union_many(given.map(|argument| argument.logical_nulls()).collect::<Vec<_>>().iter().map(Option::as_ref));
        let parsed = Parsed::default();
        let mut values = (0..rows).map(|row| {
            if missing.as_ref().is_some_and(|missing| missing.is_null(row)) {
                return Ok(Value::Null);
            }
            call(&Row { arguments: &arguments, row, parsed: &parsed }).map_err(|error| exec_datafusion_err!("{name}: {error}"))
        });
        let array = array(*result, &mut values)?;
        if scalar && array.len() == 1 {
            return Ok(ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&array, 0)?));
        }
        Ok(ColumnarValue::Array(array))
    }
}

/// Values of one kind as an array, up to the first error.
fn array(kind: Kind, values: &mut dyn Iterator<Item = Result<Value>>) -> Result<ArrayRef> {
    macro_rules! collect {
        ($array:ty, $pattern:pat => $value:expr) => {
            values.map(|value| Ok(if let $pattern = value? { Some($value) } else { None })).collect::<Result<$array>>()?
        };
    }
    Ok(match kind {
        Kind::Number => Arc::new(collect!(Decimal128Array, Value::Number(number) => number.raw()).with_data_type(DECIMAL)),
        Kind::Integer | Kind::Text => Arc::new(collect!(Int64Array, Value::Integer(number) => number)),
        Kind::Boolean => Arc::new(collect!(BooleanArray, Value::Boolean(value) => value)),
        Kind::Instant => Arc::new(collect!(TimestampMicrosecondArray, Value::Instant(instant) => instant).with_timezone("UTC")),
        Kind::Date => Arc::new(collect!(Date32Array, Value::Date(date) => days_of(date))),
        Kind::Dates => lists(values, &Arc::new(Field::new_list_field(DataType::Date32, true)), |rows| {
            array(Kind::Date, &mut rows.iter().filter_map(|row| row.first().cloned()).map(Ok))
        })?,
        Kind::List(members) => {
            let element = element(members);
            let DataType::Struct(fields) = element.data_type().clone() else { return exec_err!("{element} is no struct") };
            lists(values, &element, |rows| {
                let columns = members
                    .iter()
                    .enumerate()
                    .map(|(index, (_, kind))| array(*kind, &mut rows.iter().map(|row| Ok(row.get(index).cloned().unwrap_or(Value::Null)))));
                Ok(Arc::new(StructArray::new(fields.clone(), columns.collect::<Result<_>>()?, None)))
            })?
        }
    })
}

fn lists(
    values: &mut dyn Iterator<Item = Result<Value>>,
    element: &FieldRef,
    rows: impl Fn(&[&Vec<Value>]) -> Result<ArrayRef>,
) -> Result<ArrayRef> {
    let values: Vec<Value> = values.collect::<Result<_>>()?;
    let of = |value: &Value| if let Value::Rows(rows) = value { rows.len() } else { 0 };
    let all: Vec<&Vec<Value>> = values.iter().flat_map(|value| if let Value::Rows(rows) = value { rows.as_slice() } else { &[] }).collect();
    let offsets = OffsetBuffer::from_lengths(values.iter().map(of));
    let nulls: NullBuffer = values.iter().map(|value| matches!(value, Value::Rows(_))).collect();
    Ok(Arc::new(ListArray::new(Arc::clone(element), offsets, rows(&all)?, Some(nulls))))
}

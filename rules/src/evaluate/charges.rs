//! The charges of other rules, and of earlier windows, as a rule reads them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use ratemill_schemas::Window;

use super::{Evaluator, RateError, WindowCharges};
use crate::inputs::Input;
use crate::rule::Rule;
use crate::window_set::WindowSet;

/// Charges that are evaluated already, by rule, version and window.
pub(super) type Evaluated = HashMap<(String, String), BTreeMap<Window, RecordBatch>>;

/// Charges by the table that a query names; each row has its own window.
pub(crate) type Upstream = BTreeMap<Input, RecordBatch>;

impl Evaluator {
    /// The charges that `rule` reads for the targets of `set`: those of the windows inside of them, and of the earlier
    /// ones. There may be more; who reads them picks by window.
    pub(crate) async fn upstream(&self, rule: &Rule, set: &WindowSet) -> Result<Upstream, RateError> {
        let mut upstream = Upstream::new();
        for (input, schema) in rule.inputs.iter() {
            let (name, history, table) = match input {
                Input::Upstream(name) => (name, false, name.clone()),
                Input::Earlier(name) => (name, true, format!("earlier.{name}")),
                _ => continue,
            };
            let batch = match self.given.get(&table) {
                Some(given) => conform(given, schema),
                None => self.charges_in(rule, name, &set.ranges(history), schema).await,
            }?;
            upstream.insert(input.clone(), batch);
        }
        Ok(upstream)
    }

    /// The charges of a rule for its windows wholly inside these ranges.
    async fn charges_in(&self, reader: &Rule, name: &str, ranges: &[Window], schema: &SchemaRef) -> Result<RecordBatch, RateError> {
        let mut batches = Vec::new();
        let published = self.published.get(name).filter(|_| reader.name != name);
        let inside = |window: &Window| ranges.iter().any(|range| range.start <= window.start && window.end <= range.end);
        for (window, charges) in published.into_iter().flatten().filter(|(window, charges)| inside(window) && charges.num_rows() > 0) {
            batches.push(with_window(charges, *window, schema)?);
        }
        let own = [reader];
        let versions: Vec<&Rule> = if reader.name == name && !self.project.rules.iter().any(|rule| rule.version == reader.version) {
            own.to_vec()
        } else {
            self.project.rules.iter().filter(|rule| rule.name == name).collect()
        };
        for version in versions {
            let outside = |source| RateError::Window { rule: version.name.clone(), source };
            let mut windows = Vec::new();
            for range in ranges {
                let inside = version.windows_between(&self.project.reference, range.start, range.end).map_err(outside)?;
                let is_published = |window: &Window| published.is_some_and(|published| published.contains_key(window));
                windows.extend(
                    inside.into_iter().filter(|window| range.start <= window.start && window.end <= range.end && !is_published(window)),
                );
            }
            let missing: Vec<Window> = {
                let known = self.evaluated.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let known = known.get(&(version.name.clone(), version.version.clone()));
                windows.iter().filter(|window| !known.is_some_and(|known| known.contains_key(window))).copied().collect()
            };
            // A rule's own earlier windows are evaluated in sequence and are here by now.
            if !missing.is_empty() && version.name != reader.name {
                let charges = Box::pin(self.evaluate(version, &missing)).await?;
                self.keep(version, &charges);
            }
            let known = self.evaluated.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(known) = known.get(&(version.name.clone(), version.version.clone())) {
                for window in windows {
                    if let Some(charges) = known.get(&window)
                        && charges.num_rows() > 0
                    {
                        batches.push(with_window(charges, window, schema)?);
                    }
                }
            }
        }
        concat_batches(schema, &batches).map_err(|error| failed(&reader.name, &error))
    }

    /// Keeps evaluated charges for the rules that read them.
    pub(crate) fn keep(&self, rule: &Rule, charges: &[WindowCharges]) {
        let mut known = self.evaluated.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let windows = known.entry((rule.name.clone(), rule.version.clone())).or_default();
        windows.extend(charges.iter().map(|charges| (charges.window, charges.charges.clone())));
    }
}

fn failed(rule: &str, error: &arrow::error::ArrowError) -> RateError {
    let window = Window { start: 0, end: 0 };
    RateError::Charge { rule: rule.to_owned(), window, blame: Box::default(), message: error.to_string() }
}

/// The charges in the columns of `schema`, with their window.
fn with_window(charges: &RecordBatch, window: Window, schema: &SchemaRef) -> Result<RecordBatch, RateError> {
    let rows = charges.num_rows();
    let bound = |instant: i64| Arc::new(TimestampMicrosecondArray::from_value(instant, rows).with_timezone("UTC")) as ArrayRef;
    let columns = schema
        .fields()
        .iter()
        .map(|field| match field.name().as_str() {
            "window_start" => bound(window.start),
            "window_end" => bound(window.end),
            name => charges.column_by_name(name).cloned().unwrap_or_else(|| new_null_array(field.data_type(), rows)),
        })
        .collect();
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|error| failed("?", &error))
}

/// Given charges in the columns of `schema`.
fn conform(given: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, RateError> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| given.column_by_name(field.name()).cloned().unwrap_or_else(|| new_null_array(field.data_type(), given.num_rows())))
        .collect();
    RecordBatch::try_new(Arc::clone(schema), columns).map_err(|error| failed("?", &error))
}

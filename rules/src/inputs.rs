//! The windowed tables that a rule reads beside reference data: usage, the window itself, what was before the window,
//! and the charges of other rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, TableReference};
use datafusion::prelude::SessionContext;
use ratemill_schemas::decimal::DECIMAL;
use ratemill_schemas::time::instant_type;
use ratemill_schemas::{UsageSchema, WindowSpec};

use crate::as_of::Rewritten;
use crate::check::Checked;
use crate::evaluate::{CHARGE_COLUMNS, stored_type};
use crate::functions::EXCHANGE_RATES;
use crate::project::version;
use crate::rule::{OutputColumn, Reach, Rule};
use crate::statement::ParsedRule;

/// The schema of the tables of charges of earlier windows.
const EARLIER: &str = "earlier";

/// Columns of stored usage that say when it arrived.
pub(crate) const ARRIVAL: [&str; 2] = ["ingested_at", "log_position"];

/// A windowed table that a query can name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Input {
    /// The events of the window.
    Usage,
    /// The window.
    BillingWindow,
    /// The last event before the window of each key of `carry`.
    Opening,
    /// Charges of a rule for windows inside this one.
    Upstream(String),
    /// Charges of a rule for windows before this one.
    Earlier(String),
}

impl Input {
    pub(crate) fn table(&self) -> TableReference {
        match self {
            Self::Usage => TableReference::bare("usage"),
            Self::BillingWindow => TableReference::bare("billing_window"),
            Self::Opening => TableReference::bare("opening"),
            Self::Upstream(rule) => TableReference::bare(rule.clone()),
            Self::Earlier(rule) => TableReference::partial(EARLIER, rule.clone()),
        }
    }
}

/// The windowed tables of one rule, with their columns.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    schemas: BTreeMap<Input, SchemaRef>,
}

/// The columns of `billing_window`.
pub(crate) fn window_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("window_start", instant_type(), false), Field::new("window_end", instant_type(), false)]))
}

/// Columns of usage that rules see: not those that say when an event arrived, which a replay changes.
pub(crate) fn without_arrival(stored: &SchemaRef) -> SchemaRef {
    let seen = stored.fields().iter().filter(|field| !ARRIVAL.contains(&field.name().as_str()));
    Arc::new(Schema::new(seen.cloned().collect::<Vec<_>>()))
}

/// The columns of a rule's charges as another rule reads them.
pub(crate) fn charges_schema<'a>(versions: impl Iterator<Item = &'a Rule>) -> SchemaRef {
    let mut fields: Vec<Field> = window_schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    for name in CHARGE_COLUMNS {
        let data_type = if matches!(name, "amount" | "quantity" | "unit_price") { DECIMAL } else { DataType::Utf8 };
        fields.push(Field::new(name, data_type, true));
    }
    for rule in versions {
        for column in rule.further_columns() {
            if !fields.iter().any(|field| *field.name() == column.name) {
                fields.push(Field::new(&column.name, stored_type(&column.data_type), true));
            }
        }
    }
    Arc::new(Schema::new(fields))
}

impl Inputs {
    pub(crate) fn new(
        upstream: BTreeSet<String>,
        earlier: BTreeSet<String>,
        opening: bool,
        own: &str,
        rules: &[Rule],
        usage: &UsageSchema,
    ) -> Self {
        let mut schemas = BTreeMap::from([(Input::Usage, usage.stored().clone()), (Input::BillingWindow, window_schema())]);
        if opening {
            schemas.insert(Input::Opening, usage.stored().clone());
        }
        let charges = |name: &str| charges_schema(rules.iter().filter(|rule| rule.name == name));
        for rule in upstream.into_iter().filter(|rule| rule != own) {
            schemas.insert(Input::Upstream(rule.clone()), charges(&rule));
        }
        for rule in earlier {
            let schema = charges(&rule);
            schemas.insert(Input::Earlier(rule), schema);
        }
        Self { schemas }
    }

    /// The same, `earlier.RULE` having these further columns, too.
    pub(crate) fn with_earlier_columns(mut self, rule: &str, columns: &[OutputColumn]) -> Self {
        if let Some(schema) = self.schemas.get_mut(&Input::Earlier(rule.to_owned())) {
            let mut fields: Vec<Field> = charges_schema(std::iter::empty()).fields().iter().map(|field| field.as_ref().clone()).collect();
            for column in columns.iter().filter(|column| !CHARGE_COLUMNS.contains(&column.name.as_str())) {
                if !fields.iter().any(|field| *field.name() == column.name) {
                    let data_type = if column.data_type.is_null() { DataType::Null } else { stored_type(&column.data_type) };
                    fields.push(Field::new(&column.name, data_type, true));
                }
            }
            *schema = Arc::new(Schema::new(fields));
        }
        self
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Input, &SchemaRef)> {
        self.schemas.iter()
    }

    /// Registers a table for every input.
    pub(crate) fn register(
        &self,
        context: &SessionContext,
        mut table: impl FnMut(&Input, &SchemaRef) -> Result<Arc<dyn TableProvider>, DataFusionError>,
    ) -> Result<(), DataFusionError> {
        for (input, schema) in &self.schemas {
            if matches!(input, Input::Earlier(_))
                && let Some(catalog) = context.catalog("datafusion")
                && catalog.schema(EARLIER).is_none()
            {
                catalog.register_schema(EARLIER, Arc::new(MemorySchemaProvider::new()))?;
            }
            context.register_table(input.table(), table(input, schema)?)?;
        }
        Ok(())
    }

    /// Puts a checked rule together; `rules` are those checked before it.
    pub(crate) fn rule(
        self,
        file: String,
        text: String,
        parsed: ParsedRule,
        rewritten: Rewritten,
        checked: Checked,
        rules: &[Rule],
    ) -> Rule {
        let own = parsed.name.clone();
        let upstream: Vec<String> =
            self.schemas.keys().filter_map(|input| if let Input::Upstream(rule) = input { Some(rule.clone()) } else { None }).collect();
        let earlier: Vec<String> =
            self.schemas.keys().filter_map(|input| if let Input::Earlier(rule) = input { Some(rule.clone()) } else { None }).collect();
        let mut read: Vec<&Rule> =
            rules.iter().filter(|rule| rule.name != own && (upstream.contains(&rule.name) || earlier.contains(&rule.name))).collect();
        // The same version whatever order the files come in.
        read.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        let reads_own_usage = rewritten.tables.iter().any(|table| table == "usage" || table == "opening");
        let mut meters = if reads_own_usage { checked.meters } else { Some(Vec::new()) };
        for rule in &read {
            if rule.reads_usage {
                meters = meters.zip(rule.meters.clone()).map(|(mut own, theirs)| {
                    own.extend(theirs);
                    own.sort();
                    own.dedup();
                    own
                });
            }
        }
        let count = |names: &[String], table: &String| names.iter().filter(|name| *name == table).count();
        let mut tables: BTreeSet<String> = rewritten.tables.iter().cloned().collect();
        let mut as_of_usage = tables.clone();
        as_of_usage.retain(|table| count(&rewritten.as_of_usage, table) == count(&rewritten.tables, table));
        let lower = text.to_ascii_lowercase();
        let sees_validity = rewritten.sees_validity || ["valid_from", "valid_to", "natural"].iter().any(|word| lower.contains(word));
        if parsed.options.window == WindowSpec::BillingPeriod {
            tables.insert("contracts".to_owned());
            as_of_usage.remove("contracts");
        }
        // Wherever the text says it: a table too many is compared in vain, one too few would be a charge that is not.
        if lower.contains("convert") {
            tables.insert(EXCHANGE_RATES.to_owned());
            as_of_usage.remove(EXCHANGE_RATES);
        }
        let onward = !earlier.is_empty() || !parsed.options.carry.is_empty() || read.iter().any(|rule| rule.reach == Reach::Onward);
        Rule {
            version: version(&text, &read),
            name: parsed.name,
            file,
            text,
            options: parsed.options,
            reads_usage: reads_own_usage || read.iter().any(|rule| rule.reads_usage),
            meters,
            upstream,
            earlier,
            reach: if onward { Reach::Onward } else { Reach::Own },
            tables,
            as_of_usage,
            sees_validity,
            output: checked.output,
            query: parsed.query,
            fan_out: rewritten.fan_out,
            inputs: self,
        }
    }
}

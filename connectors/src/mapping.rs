//! Which field of a record becomes which column of usage.

use std::collections::BTreeMap;

use arrow::datatypes::Schema;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ratemill_schemas::adopted::{AdoptedColumns, TextSource};
use ratemill_schemas::time::parse_instant;
use ratemill_schemas::{Decimal, UsageSchema, windows};
use serde::Deserialize;

/// Where a column comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum FieldRef {
    /// A field of the record; `a.b` is field `b` of object `a`.
    Field(String),
    /// The same for every record.
    Constant {
        /// The value.
        constant: String,
    },
}

/// How times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeFormat {
    /// RFC 3339 with an offset.
    #[default]
    Rfc3339,
    /// Seconds since 1970 UTC, with decimals.
    UnixSeconds,
    /// Milliseconds since 1970 UTC.
    UnixMilliseconds,
    /// A local date and time in the mapping's `timezone`; an hour that occurs twice or never is refused.
    Local,
}

/// The mapping as it is configured. A field that is not named has its canonical name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappingConfig {
    /// CloudEvents source; the connector's name by default.
    pub source: Option<FieldRef>,
    /// Event id.
    pub id: Option<FieldRef>,
    /// Meter (CloudEvents type).
    pub meter: Option<FieldRef>,
    /// Subject.
    pub subject: Option<FieldRef>,
    /// Event time.
    pub time: Option<FieldRef>,
    /// End of an interval.
    pub end: Option<FieldRef>,
    /// Quantity.
    pub quantity: Option<FieldRef>,
    /// Declared dimensions that have another name in the record.
    #[serde(default)]
    pub dimensions: BTreeMap<String, FieldRef>,
    /// How `time` and `end` are written.
    #[serde(default)]
    pub time_format: TimeFormat,
    /// Zone of local times.
    pub timezone: Option<String>,
}

/// A mapping that cannot work, found before any record is read.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// A dimension that the project does not declare.
    #[error("mapping names dimension `{name}`, which [dimensions] does not declare{hint}")]
    UnknownDimension {
        /// What was named.
        name: String,
        /// "; did you mean …?" or nothing.
        hint: String,
    },
    /// Local times without a zone.
    #[error("time_format = \"local\" needs `timezone`, for example timezone = \"Europe/London\"")]
    ZoneMissing,
    /// The zone is not in the IANA database.
    #[error(transparent)]
    Zone(#[from] windows::WindowError),
    /// Neither an id nor an identity rule: a resent record could not be told from a new one.
    #[error("records have no identity: map `id`, or declare identity = [\"subject\", \"meter\", \"time\"] (never arrival time)")]
    NoIdentity,
}

/// A checked mapping.
#[derive(Debug, Clone)]
pub struct Mapping {
    pub(crate) source: FieldRef,
    pub(crate) id: Option<FieldRef>,
    pub(crate) meter: FieldRef,
    pub(crate) subject: FieldRef,
    pub(crate) time: FieldRef,
    pub(crate) end: FieldRef,
    /// Tried in order.
    pub(crate) quantity: Vec<FieldRef>,
    /// Per declared dimension, tried in order.
    pub(crate) dimensions: Vec<Vec<FieldRef>>,
    dimension_names: Vec<String>,
    /// Of CloudEvents, how the new event of an amendment is read.
    pub(crate) amended: Option<Box<Mapping>>,
    pub(crate) identity: Vec<String>,
    times: Times,
}

#[derive(Debug, Clone)]
enum Times {
    Rfc3339,
    Unix { micros_per_unit: i64 },
    Local(TimeZone),
}

/// Where an amendment has its new event.
pub(crate) const AMENDED_EVENT: &str = "data.event.";

fn field(name: &str) -> FieldRef {
    FieldRef::Field(name.to_owned())
}

impl Mapping {
    /// The mapping of CloudEvents: attributes by their names, `quantity` from `data.quantity`, else `data.value` (or
    /// as configured), dimensions from `data`, else from extension attributes.
    #[must_use]
    pub fn cloud_events(schema: &UsageSchema, quantity: Option<FieldRef>) -> Self {
        let below = |reference: FieldRef| match reference {
            FieldRef::Field(name) => FieldRef::Field(format!("{AMENDED_EVENT}{name}")),
            constant @ FieldRef::Constant { .. } => constant,
        };
        let mut amended = Self::cloud_event_below(AMENDED_EVENT, schema, quantity.clone().map(below));
        amended.source = field("data.target.source");
        amended.id = Some(field("data.target.id"));
        Self { amended: Some(Box::new(amended)), ..Self::cloud_event_below("", schema, quantity) }
    }

    /// The mapping of a CloudEvent whose attributes lie below `prefix`.
    fn cloud_event_below(prefix: &str, schema: &UsageSchema, quantity: Option<FieldRef>) -> Self {
        let field = |name: &str| field(&format!("{prefix}{name}"));
        Self {
            source: field("source"),
            id: Some(field("id")),
            meter: field("type"),
            subject: field("subject"),
            time: field("time"),
            end: field("data.end"),
            quantity: quantity.map_or_else(|| vec![field("data.quantity"), field("data.value")], |quantity| vec![quantity]),
            dimensions: schema
                .dimensions()
                .iter()
                .map(|dimension| vec![field(&format!("data.{}", dimension.name)), field(&dimension.name)])
                .collect(),
            amended: None,
            dimension_names: schema.dimensions().iter().map(|dimension| dimension.name.clone()).collect(),
            identity: Vec::new(),
            times: Times::Rfc3339,
        }
    }

    /// The mapping of plain records (JSON objects, CSV or Parquet rows) of connector `name`.
    ///
    /// # Errors
    /// [`MappingError`].
    pub fn plain(name: &str, config: &MappingConfig, identity: &[String], schema: &UsageSchema) -> Result<Self, MappingError> {
        for dimension in config.dimensions.keys() {
            if !schema.dimensions().iter().any(|declared| declared.name == *dimension) {
                return Err(MappingError::UnknownDimension {
                    name: dimension.clone(),
                    hint: ratemill_schemas::nearest::did_you_mean(dimension, schema.dimensions().iter().map(|d| d.name.as_str())),
                });
            }
        }
        if config.id.is_none() && identity.is_empty() {
            return Err(MappingError::NoIdentity);
        }
        let times = match config.time_format {
            TimeFormat::Rfc3339 => Times::Rfc3339,
            TimeFormat::UnixSeconds => Times::Unix { micros_per_unit: 1_000_000 },
            TimeFormat::UnixMilliseconds => Times::Unix { micros_per_unit: 1000 },
            TimeFormat::Local => Times::Local(windows::zone(config.timezone.as_deref().ok_or(MappingError::ZoneMissing)?)?),
        };
        let or = |given: &Option<FieldRef>, name: &str| given.clone().unwrap_or_else(|| field(name));
        Ok(Self {
            source: config.source.clone().unwrap_or_else(|| FieldRef::Constant { constant: name.to_owned() }),
            id: config.id.clone(),
            meter: or(&config.meter, "meter"),
            subject: or(&config.subject, "subject"),
            time: or(&config.time, "time"),
            end: or(&config.end, "end"),
            quantity: vec![or(&config.quantity, "quantity")],
            dimensions: schema
                .dimensions()
                .iter()
                .map(|dimension| vec![config.dimensions.get(&dimension.name).cloned().unwrap_or_else(|| field(&dimension.name))])
                .collect(),
            dimension_names: schema.dimensions().iter().map(|dimension| dimension.name.clone()).collect(),
            amended: None,
            identity: identity.to_vec(),
            times,
        })
    }

    /// Reads a time as this mapping writes it, in µs UTC.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn time(&self, text: &str) -> Result<i64, String> {
        match &self.times {
            Times::Rfc3339 => parse_instant(text).map_err(|error| format!("`{text}` {error}")),
            Times::Unix { micros_per_unit } => {
                let number: Decimal =
                    text.parse().map_err(|_| format!("`{text}` is not a number of seconds or milliseconds since 1970"))?;
                let micros = number.multiply(Decimal::from_integer(*micros_per_unit)).map_err(|error| format!("`{text}` {error}"))?;
                i64::try_from(micros.raw() / Decimal::ONE.raw()).map_err(|_| format!("`{text}` is outside the calendar"))
            }
            Times::Local(zone) => {
                let local: DateTime =
                    text.parse().map_err(|_| format!("`{text}` is not a local date and time, like 2026-10-01 09:30:00"))?;
                let ambiguous = zone.to_ambiguous_timestamp(local);
                let timestamp = ambiguous
                    .unambiguous()
                    .map_err(|_| format!("`{text}` occurs twice or never where clocks change; send it with an offset"))?;
                Ok(timestamp.as_microsecond())
            }
        }
    }

    /// Fields of the record without which no row can be read: what a CSV header or Parquet schema must have.
    pub(crate) fn required_fields(&self) -> impl Iterator<Item = &str> {
        [
            Some(&self.source),
            self.id.as_ref().filter(|_| self.identity.is_empty()),
            Some(&self.meter),
            Some(&self.subject),
            Some(&self.time),
            self.quantity.first(),
        ]
        .into_iter()
        .flatten()
        .filter_map(|reference| match reference {
            FieldRef::Field(name) => Some(name.as_str()),
            FieldRef::Constant { .. } => None,
        })
    }

    /// The fields that feed the column `name`; the field of that name where it is none of usage's columns.
    pub(crate) fn fields_of<'m>(&'m self, name: &'m str) -> Vec<&'m str> {
        let references: Vec<&FieldRef> = match name {
            "source" => vec![&self.source],
            "id" => self.id.iter().collect(),
            "meter" => vec![&self.meter],
            "subject" => vec![&self.subject],
            "time" => vec![&self.time],
            "end" => vec![&self.end],
            "quantity" => self.quantity.iter().collect(),
            _ => match self.dimension_names.iter().position(|dimension| dimension == name) {
                Some(index) => self.dimensions[index].iter().collect(),
                None => return vec![name],
            },
        };
        references
            .into_iter()
            .filter_map(|reference| match reference {
                FieldRef::Field(field) => Some(field.as_str()),
                FieldRef::Constant { .. } => None,
            })
            .collect()
    }

    /// How a Parquet file with these columns is adopted as it is; `None` where its rows have to be read one by one.
    pub(crate) fn adopted(&self, file: &Schema, usage: &UsageSchema) -> Option<AdoptedColumns> {
        let text = |reference: &FieldRef| match reference {
            FieldRef::Field(name) => TextSource::Column(name.clone()),
            FieldRef::Constant { constant } => TextSource::Constant(constant.clone()),
        };
        let column = |reference: &FieldRef| match reference {
            FieldRef::Field(name) => Some(name.clone()),
            FieldRef::Constant { .. } => None,
        };
        let is_there = |name: &String| file.field_with_name(name).is_ok();
        let mut dimensions = Vec::new();
        for (name, references) in self.dimension_names.iter().zip(&self.dimensions) {
            let columns = references.iter().map(column).collect::<Option<Vec<String>>>()?;
            dimensions.extend(columns.into_iter().find(is_there).map(|column| (name.clone(), column)));
        }
        let [quantity] = self.quantity.as_slice() else { return None };
        let columns = AdoptedColumns {
            source: text(&self.source),
            id: column(self.id.as_ref()?)?,
            meter: text(&self.meter),
            subject: text(&self.subject),
            time: column(&self.time)?,
            end: Some(column(&self.end)?).filter(is_there),
            quantity: column(quantity)?,
            dimensions,
        };
        let as_it_is = self.amended.is_none() && self.identity.is_empty() && matches!(self.times, Times::Rfc3339);
        (as_it_is && columns.fit(file, usage)).then_some(columns)
    }

    /// Whether a field of this name feeds a column, so that it is no attribute.
    pub(crate) fn uses(&self, is: impl Fn(&str) -> bool) -> bool {
        let named = |reference: &FieldRef| matches!(reference, FieldRef::Field(name) if is(name));
        named(&self.source)
            || self.id.as_ref().is_some_and(named)
            || named(&self.meter)
            || named(&self.subject)
            || named(&self.time)
            || named(&self.end)
            || self.quantity.iter().any(named)
            || self.dimensions.iter().flatten().any(named)
    }
}

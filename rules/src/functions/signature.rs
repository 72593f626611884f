//! What the functions of `FUNCTIONS.md` take, as the check of rules reads it.

use arrow::datatypes::DataType;
use ratemill_schemas::windows::{self, WindowSpec};
use ratemill_schemas::{Currency, Decimal, Rounding};

use super::binding::{Kind, Need};
use super::{quantities, times};
use crate::pricing::blocks::BlockPolicy;
use crate::pricing::calls::CallKind;
use crate::pricing::clock::time_of_day;
use crate::pricing::cycles::Cycle;
use crate::pricing::packages::PartPackage;
use crate::pricing::tiers::Steps;

/// A function's parameters.
pub(crate) struct Signature {
    pub(crate) name: &'static str,
    pub(crate) parameters: Vec<Parameter>,
    /// How many must be given.
    pub(crate) required: usize,
}

/// One parameter.
#[derive(Clone, Copy)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    kind: Kind,
}

/// Name, parameters, and how many of them must be given.
type Other = (&'static str, &'static [(&'static str, Kind)], usize);

/// Functions that are no plain formulas.
const OTHERS: [Other; 12] = [
    ("round_money", &[("amount", Kind::Number), ("currency", Kind::Text), ("mode", Kind::Text)], 2),
    ("round", &[("number", Kind::Number), ("places", Kind::Integer), ("mode", Kind::Text)], 1),
    ("ceil", &[("number", Kind::Number), ("places", Kind::Integer)], 1),
    ("floor", &[("number", Kind::Number), ("places", Kind::Integer)], 1),
    ("parse_decimal", &[("text", Kind::Text)], 1),
    ("convert", &[("amount", Kind::Number), ("from", Kind::Text), ("to", Kind::Text), ("instant", Kind::Instant)], 4),
    ("latest", &[("value", Kind::Number), ("time", Kind::Instant)], 2),
    ("percentile", &[("value", Kind::Number), ("percent", Kind::Number)], 2),
    ("weighted", &[("level", Kind::Number), ("time", Kind::Instant), ("window_start", Kind::Instant), ("window_end", Kind::Instant)], 4),
    ("register_usage", &[("reading", Kind::Number), ("time", Kind::Instant), ("rollover", Kind::Number)], 2),
    ("sum", &[("number", Kind::Number)], 1),
    ("abs", &[("number", Kind::Number)], 1),
];

/// Names that a mistyped function can have meant.
pub(crate) fn documented() -> impl Iterator<Item = &'static str> {
    let plain = quantities::FUNCTIONS.iter().chain(times::FUNCTIONS).map(|definition| definition.name);
    let others = OTHERS.iter().map(|(name, ..)| *name);
    plain.chain(others).chain(["count", "min", "max", "unique", "coalesce", "greatest", "least", "nullif"])
}

/// The parameters of a function; `None` when they are not fixed.
pub(crate) fn signature(name: &str) -> Option<Signature> {
    let plain = quantities::FUNCTIONS.iter().chain(times::FUNCTIONS).find(|definition| definition.name == name);
    if let Some(definition) = plain {
        let parameters = definition.parameters.iter().map(|(name, kind, _)| Parameter { name, kind: *kind }).collect();
        let required = definition.parameters.iter().filter(|(.., need)| *need != Need::Optional).count();
        return Some(Signature { name: definition.name, parameters, required });
    }
    let (name, parameters, required) = OTHERS.iter().find(|(known, ..)| *known == name)?;
    let parameters = parameters.iter().map(|(name, kind)| Parameter { name, kind: *kind }).collect();
    Some(Signature { name, parameters, required: *required })
}

impl Signature {
    /// `graduated(quantity, tiers [, flat_on_zero])`.
    pub(crate) fn usage(&self) -> String {
        let given: Vec<&str> = self.parameters[..self.required].iter().map(|parameter| parameter.name).collect();
        let optional: String = self.parameters[self.required..].iter().map(|parameter| format!(" [, {}", parameter.name)).collect();
        let closing = "]".repeat(self.parameters.len() - self.required);
        format!("{}({}{optional}{closing})", self.name, given.join(", "))
    }

    /// Whether it can be called with so many arguments.
    pub(crate) fn takes(&self, arguments: usize) -> bool {
        // The limits of a percentage come together.
        let both = self.name != "percentage" || arguments != 4;
        (self.required..=self.parameters.len()).contains(&arguments) && both
    }
}

impl Parameter {
    pub(crate) fn accepts(self, given: &DataType) -> bool {
        self.kind.accepts(given)
    }

    pub(crate) fn is_list(self) -> bool {
        matches!(self.kind, Kind::List(_) | Kind::Dates)
    }

    pub(crate) fn is_instant(self) -> bool {
        self.kind == Kind::Instant
    }

    pub(crate) fn is_date(self) -> bool {
        self.kind == Kind::Date
    }

    pub(crate) fn is_number(self) -> bool {
        matches!(self.kind, Kind::Number | Kind::Integer)
    }

    pub(crate) fn describe(self) -> String {
        self.kind.describe()
    }

    /// What is wrong with a literal text for this parameter of `function`, read as it is when the rule runs.
    pub(crate) fn wrong_text(self, function: &str, text: &str) -> Option<String> {
        let wrong = match (function, self.name) {
            (_, "timezone") => windows::zone(text).err().map(|error| error.to_string()),
            ("round" | "round_money", "mode") => text.parse::<Rounding>().err().map(|error| error.to_string()),
            ("stairstep", "mode") => text.parse::<Steps>().err().map(|error| error.to_string()),
            ("package" | "packages", "rounding") => text.parse::<PartPackage>().err().map(|error| error.to_string()),
            (_, "policy") => text.parse::<BlockPolicy>().err().map(|error| error.to_string()),
            (_, "kind") => text.parse::<CallKind>().err().map(|error| error.to_string()),
            (_, "period") => text.parse::<Cycle>().err().map(|error| error.to_string()),
            (_, "from_time" | "to_time") => time_of_day(text).err().map(|error| error.to_string()),
            ("time_bucket", "length") => WindowSpec::parse(text, jiff::tz::TimeZone::UTC).err().map(|error| error.to_string()),
            ("round_money", "currency") | ("convert", "from" | "to") => text.parse::<Currency>().err().map(|error| error.to_string()),
            _ => None,
        }?;
        Some(wrong)
    }

    /// What is wrong with a literal number for this parameter of `function`.
    pub(crate) fn wrong_number(self, function: &str, number: Decimal) -> Option<&'static str> {
        let whole = |value: i64| Decimal::from_integer(value);
        match (function, self.name) {
            (_, "places" | "increment_places") if number < whole(-18) || number > whole(18) => Some("places are -18 to 18"),
            ("package" | "packages", "size") if number <= whole(0) => Some("the size of a package is above 0"),
            ("round_up_to" | "round_down_to", "step") if number <= whole(0) => Some("a step is above 0"),
            ("increments", "next") if number <= whole(0) => Some("an increment is above 0"),
            ("percentile", "percent") if number <= whole(0) || number > whole(100) => Some("a percentile is above 0 and up to 100"),
            (_, "anchor_day") if number < whole(1) || number > whole(31) => Some("an anchor day is 1 to 31"),
            _ => None,
        }
    }
}

//! The options of a rule: `WITH (window = 'month', …)`.

use ratemill_schemas::Rounding;
use ratemill_schemas::money::UnknownRounding;
use ratemill_schemas::nearest::did_you_mean;
use ratemill_schemas::time::parse_duration;
use ratemill_schemas::windows::{self, WindowSpec};
use sqlparser::ast::{Expr, SqlOption, Value, ValueWithSpan};

use crate::diagnostics::{Diagnostics, Place};
use crate::rule::RuleOptions;
use crate::source::Source;

/// The options that a rule may have.
const OPTIONS: [&str; 11] =
    ["window", "timezone", "anchor", "grace", "emit", "effective_from", "effective_to", "fan_out", "carry", "history", "rounding"];

/// Windows that have a name.
const WINDOWS: [&str; 7] = ["hour", "day", "week", "month", "quarter", "year", "billing_period"];

/// One option as it was written.
#[derive(Debug, Clone)]
struct Given {
    name: String,
    /// `None` when the value was no text, which has been said.
    value: Option<String>,
    key_place: Option<Place>,
    value_place: Option<Place>,
}

/// Where the options stand.
#[derive(Debug, Clone, Default)]
pub(crate) struct OptionPlaces(Vec<Given>);

impl OptionPlaces {
    fn given(&self, name: &str) -> Option<&Given> {
        self.0.iter().find(|given| given.name == name)
    }

    pub(crate) fn key(&self, name: &str) -> Option<Place> {
        self.given(name)?.key_place
    }

    pub(crate) fn value(&self, name: &str) -> Option<Place> {
        self.given(name)?.value_place
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.given(name)?.value.as_deref()
    }
}

/// Reads options; what is wrong goes into the diagnostics.
pub(crate) struct Reader<'a> {
    pub(crate) source: &'a Source,
    pub(crate) diagnostics: &'a mut Diagnostics,
}

impl Reader<'_> {
    fn error(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>, help: &str) {
        let diagnostic = self.source.error(code, place, message);
        self.diagnostics.push(if help.is_empty() { diagnostic } else { diagnostic.help(help) });
    }

    /// The options as they are written; what is wrong with their form is said.
    fn given(&mut self, options: &[SqlOption]) -> OptionPlaces {
        let mut places = OptionPlaces::default();
        for option in options {
            let SqlOption::KeyValue { key, value } = option else {
                self.error("option-value", self.source.head(0), "an option is written name = 'value'", "");
                continue;
            };
            let key_place = self.source.of_span(key.span);
            let name = key.value.to_lowercase();
            if !OPTIONS.contains(&name.as_str()) {
                let message = format!("option `{name}` is unknown{}", did_you_mean(&name, OPTIONS));
                self.error("option-unknown", key_place, message, &format!("options are {}", OPTIONS.join(", ")));
                continue;
            }
            if places.given(&name).is_some() {
                self.error("option-twice", key_place, format!("option `{name}` is given twice"), "take one of them out");
                continue;
            }
            let value_place = self.source.of(value);
            let text = match value {
                Expr::Value(ValueWithSpan { value: Value::SingleQuotedString(text), .. }) => Some(text.clone()),
                other => {
                    // Of an expression it is unclear what was meant: 2026-01-01 is a subtraction.
                    let help = match other {
                        Expr::Value(ValueWithSpan { value: Value::Number(..), .. }) | Expr::Identifier(_) => {
                            format!("write {name} = '{}'", other.to_string().trim_matches('"'))
                        }
                        _ => format!("write {name} = '…'"),
                    };
                    self.error("option-value", value_place, format!("the value of `{name}` is a text in single quotes"), &help);
                    None
                }
            };
            places.0.push(Given { name, value: text, key_place, value_place });
        }
        places
    }

    /// The value of an option that must be there.
    fn required(&mut self, places: &OptionPlaces, name: &str, help: &str) -> Option<String> {
        match places.given(name) {
            Some(given) => given.value.clone(),
            None => {
                let place = match (places.0.first(), places.0.last()) {
                    (Some(first), Some(last)) => first.key_place.zip(last.value_place).map(|(first, last)| Source::join(first, last)),
                    _ => self.source.head(0),
                };
                let missing = if name == "window" { "no window".to_owned() } else { format!("no {name}") };
                self.error("option-missing", place, format!("the rule has {missing}"), help);
                None
            }
        }
    }

    fn window(&mut self, text: &str, place: Option<Place>, zone: jiff::tz::TimeZone) -> Option<WindowSpec> {
        match WindowSpec::parse(text, zone) {
            Ok(spec) => Some(spec),
            Err(error) => {
                let words: Vec<&str> = text.split_whitespace().collect();
                let help = match words.as_slice() {
                    [_, "month" | "months"] => "write 'quarter', or 'month' and read earlier months as earlier.NAME".to_owned(),
                    _ => did_you_mean(text, WINDOWS).trim_start_matches("; ").to_owned(),
                };
                self.error("window", place, error.to_string(), &help);
                None
            }
        }
    }

    pub(crate) fn options(&mut self, options: &[SqlOption]) -> Option<(RuleOptions, OptionPlaces)> {
        let before = self.diagnostics.0.len();
        let places = self.given(options);
        let get = |name: &str| places.given(name).and_then(|given| Some((given.value.clone()?, given.value_place)));
        let (timezone, zone_place) = get("timezone").unwrap_or_else(|| ("UTC".to_owned(), None));
        if options.is_empty() {
            let help = "write WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01') before AS";
            self.error("option-missing", self.source.head(0), "the rule has no window and no effective_from", help);
            return None;
        }
        if self.diagnostics.0.len() > before && (places.given("window").is_none() || places.given("effective_from").is_none()) {
            // What is missing is probably what was misspelt.
            return None;
        }
        let window = self.required(&places, "window", "add window = 'month'");
        let from =
            self.required(&places, "effective_from", "add effective_from = '2026-01-01': the first day whose windows the rule rates");
        let (window, from) = window.zip(from)?;
        let zone = match windows::zone(&timezone) {
            Ok(zone) => zone,
            Err(error) => {
                let (message, help) = zone_error(&timezone, &error.to_string());
                self.error("timezone", zone_place, message, &help);
                return None;
            }
        };
        let mut spec = self.window(&window, places.value("window"), zone)?;
        let anchor = get("anchor");
        if let Some((day, place)) = &anchor {
            match spec.anchored(day) {
                Ok(anchored) => spec = anchored,
                Err(error) => {
                    self.error("anchor", *place, error.to_string(), "");
                    return None;
                }
            }
        }
        let effective_from = self.instant("effective_from", &from, places.value("effective_from"), &timezone)?;
        let effective_to = match get("effective_to") {
            Some((text, place)) => Some(self.instant("effective_to", &text, place, &timezone)?),
            None => None,
        };
        if effective_to.is_some_and(|to| to <= effective_from) {
            self.error(
                "effective-to",
                places.value("effective_to"),
                "effective_to is not after effective_from",
                "it is the first day whose windows the rule no longer rates",
            );
        }
        let grace = self.of(&places, "grace", Self::grace)?.unwrap_or(0);
        let fan_out_allowed = self.of(&places, "fan_out", Self::fan_out)?.unwrap_or(false);
        let provisional = self.of(&places, "emit", Self::emit)?.unwrap_or(true);
        let rounding = self.of(&places, "rounding", Self::rounding)?;
        let carry = self.of(&places, "carry", Self::carry)?.unwrap_or_default();
        let history = self.of(&places, "history", Self::history)?;
        // A value that is no text is as good as missing.
        if self.diagnostics.0.len() > before {
            return None;
        }
        let options = RuleOptions {
            window: spec,
            window_name: window,
            timezone,
            anchor: anchor.map(|(day, _)| day),
            grace,
            effective_from,
            effective_to,
            fan_out_allowed,
            provisional,
            rounding,
            carry,
            history,
        };
        self.useless(&options, &places);
        Some((options, places))
    }

    /// An option's value as `read` makes it; the inner `None` is an option that was not given.
    #[allow(clippy::option_option)]
    fn of<T>(
        &mut self,
        places: &OptionPlaces,
        name: &str,
        read: impl FnOnce(&mut Self, &str, Option<Place>) -> Option<T>,
    ) -> Option<Option<T>> {
        match places.given(name).and_then(|given| Some((given.value.as_deref()?, given.value_place))) {
            None => Some(None),
            Some((text, place)) => read(self, text, place).map(Some),
        }
    }

    fn grace(&mut self, text: &str, place: Option<Place>) -> Option<i64> {
        parse_duration(text)
            .map_err(|message| self.error("duration", place, message, "write a number and a unit, as in '2 days' or '6 hours'"))
            .ok()
    }

    fn fan_out(&mut self, text: &str, place: Option<Place>) -> Option<bool> {
        if text == "allowed" {
            return Some(true);
        }
        self.error("option-value", place, format!("fan_out is 'allowed' or not given, not '{text}'"), "");
        None
    }

    fn emit(&mut self, text: &str, place: Option<Place>) -> Option<bool> {
        match text {
            "running" => Some(true),
            "final" => Some(false),
            other => {
                let message = format!("emit is 'running' (open windows show provisional charges) or 'final', not '{other}'");
                self.error("option-value", place, message, "");
                None
            }
        }
    }

    fn rounding(&mut self, text: &str, place: Option<Place>) -> Option<Rounding> {
        let modes = Rounding::ALL.map(Rounding::name);
        text.parse()
            .map_err(|error: UnknownRounding| self.error("rounding", place, format!("{error}{}", did_you_mean(text, modes)), ""))
            .ok()
    }

    fn carry(&mut self, text: &str, place: Option<Place>) -> Option<Vec<String>> {
        let columns: Vec<String> = text.split(',').map(|column| column.trim().to_owned()).collect();
        if columns.iter().any(String::is_empty) {
            self.error("carry", place, "carry names columns of usage", "write carry = 'subject, meter'");
            return None;
        }
        Some(columns)
    }

    fn history(&mut self, text: &str, place: Option<Place>) -> Option<u32> {
        let number = text.strip_suffix("windows").or_else(|| text.strip_suffix("window")).unwrap_or_default().trim();
        let is_plain = number.bytes().all(|digit| digit.is_ascii_digit());
        let windows = number.parse::<u32>().ok().filter(|windows| is_plain && (1..=1200).contains(windows));
        if windows.is_none() {
            let message = format!("history is a number of earlier windows, up to 1200, not '{text}'");
            self.error("history", place, message, "write history = '11 windows'");
        }
        windows
    }

    fn instant(&mut self, name: &str, text: &str, place: Option<Place>, timezone: &str) -> Option<i64> {
        match windows::instant_of_day(text, timezone) {
            Ok(instant) if instant >= 0 => Some(instant),
            Ok(_) => {
                let help = "windows are counted from effective_from on; write the first day that is rated";
                self.error("option-date", place, format!("{name}: `{text}` is before 1970"), help);
                None
            }
            Err(message) => {
                self.error("option-date", place, format!("{name}: {message}"), "write a date as '2026-01-01'");
                None
            }
        }
    }

    /// Options that change nothing, and windows that do not fit into a day.
    fn useless(&mut self, options: &RuleOptions, places: &OptionPlaces) {
        let mut warn = |code, place, message: String, help: &str| {
            self.diagnostics.push(self.source.error(code, place, message).help(help).warning());
        };
        let dates = [places.text("effective_from"), places.text("effective_to")].into_iter().flatten().any(|text| text.len() == 10);
        if let WindowSpec::Fixed { length } = options.window {
            let day = 86_400_000_000;
            if places.key("timezone").is_some() && !dates {
                warn(
                    "option-unused",
                    places.key("timezone"),
                    format!("windows of {} are the same in every zone", options.window_name),
                    "take timezone out",
                );
            }
            if day % length != 0 && length % day != 0 {
                let message = format!("windows of {} begin at another time every day", options.window_name);
                warn("window-uneven", places.value("window"), message, "take a length that divides a day, such as '15 minutes' or 'hour'");
            }
        }
    }
}

fn zone_error(name: &str, message: &str) -> (String, String) {
    if name.starts_with(['+', '-']) {
        let plain = message.split("; did you mean").next().unwrap_or(message);
        return (plain.to_owned(), "an offset knows no summer time; name a place, such as Europe/London".to_owned());
    }
    if name.len() < 5 {
        let plain = message.split("; did you mean").next().unwrap_or(message);
        return (plain.to_owned(), "name a place, such as Europe/London; its summer time is known".to_owned());
    }
    (message.to_owned(), String::new())
}

//! What the types of expressions show to be wrong: arguments, casts, floats, texts among numbers, calendars in UTC.

use arrow::datatypes::DataType;
use datafusion::execution::SessionState;
use ratemill_schemas::Decimal;
use ratemill_schemas::nearest::did_you_mean;
use sqlparser::ast::{
    BinaryOperator, CastKind, DataType as SqlType, Expr, Function, FunctionArguments, Query, TableFactor, TableVersion, UnaryOperator,
};

use super::Reading;
use super::plan::{has_float, lossy};
use super::typed::{Types, scopes};
use crate::functions::{Parameter, signature};
use crate::tree::{arguments, call_name, column_name, number_literal, plain, text_literal};

/// Checks every expression; `true` when all of them are sound.
pub(super) async fn check(query: &Query, state: &SessionState, reading: &mut Reading<'_>) {
    let rounding = reading.options.rounding;
    let scopes = scopes(query, state, rounding).await;
    for scope in &scopes {
        let Some(types) = scope.types(&scopes, state, rounding) else { continue };
        let mut checker = Expressions { reading, types: &types, wrong: Vec::new() };
        checker.versions(&scope.select);
        for expr in scope.expressions() {
            checker.expression(&expr);
        }
    }
}

/// The innermost expression that cannot be planned while all of its parts can.
pub(super) async fn culprit(query: &Query, state: &SessionState, reading: &Reading<'_>) -> Option<(Expr, String)> {
    let rounding = reading.options.rounding;
    let scopes = scopes(query, state, rounding).await;
    for scope in &scopes {
        let Some(types) = scope.types(&scopes, state, rounding) else { continue };
        for expr in scope.expressions() {
            let has_query =
                crate::tree::any(&expr, |part| matches!(part, Expr::Subquery(_) | Expr::InSubquery { .. } | Expr::Exists { .. }));
            if has_query {
                continue;
            }
            if let Err(error) = types.plan(&expr) {
                return Some((expr, error.strip_backtrace()));
            }
        }
    }
    None
}

/// A type in the words of analysts.
pub(super) fn describe(data_type: &DataType) -> String {
    match data_type {
        other if other.is_string() => "a text".to_owned(),
        DataType::Null => "NULL".to_owned(),
        DataType::Boolean => "true or false".to_owned(),
        DataType::Date32 | DataType::Date64 => "a date".to_owned(),
        DataType::Timestamp(..) => "an instant".to_owned(),
        DataType::Interval(_) | DataType::Duration(_) => "a length of time".to_owned(),
        other if other.is_integer() => "a whole number".to_owned(),
        other if other.is_floating() => "a floating-point number".to_owned(),
        other if other.is_numeric() => "a number".to_owned(),
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => match field.data_type() {
            DataType::Struct(fields) => {
                let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
                format!("a list of {}", names.join(", "))
            }
            other => format!("a list, each {}", describe(other)),
        },
        DataType::Map(..) => "a map of texts".to_owned(),
        DataType::Struct(_) => "a row".to_owned(),
        other => format!("a {other}"),
    }
}

struct Expressions<'r, 'a, 't> {
    reading: &'r mut Reading<'a>,
    types: &'t Types<'t>,
    /// What was said to be wrong already; nothing is said of what it is part of.
    wrong: Vec<Expr>,
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_numeric()
}

fn is_instant(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(..))
}

fn is_time(data_type: &DataType) -> bool {
    is_instant(data_type) || matches!(data_type, DataType::Date32 | DataType::Date64)
}

impl Expressions<'_, '_, '_> {
    fn error(&mut self, expr: &Expr, code: &'static str, message: impl Into<String>, help: &str) {
        let place = self.reading.source.of(expr);
        if !self.holds_wrong(expr) {
            self.reading.error(code, place, message, help);
        }
        self.wrong.push(expr.clone());
    }

    fn warn(&mut self, expr: &Expr, code: &'static str, message: impl Into<String>, help: &str) {
        let place = self.reading.source.of(expr);
        self.reading.warn(code, place, message, help);
    }

    fn holds_wrong(&self, expr: &Expr) -> bool {
        crate::tree::any(expr, |part| self.wrong.contains(part))
    }

    fn expression(&mut self, expr: &Expr) {
        if self.holds_wrong(expr) {
            return;
        }
        match expr {
            Expr::Function(call) => self.call(expr, call),
            Expr::Cast { kind, expr: inner, data_type, .. } => self.cast(expr, kind, inner, data_type),
            Expr::BinaryOp { left, op, right } => self.binary(expr, left, op, right),
            Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => {
                if let Some(given) = self.types.of(inner)
                    && !is_number(&given)
                    && !given.is_null()
                {
                    let message = format!("`-` takes a number; `{inner}` is {}", describe(&given));
                    self.error(expr, "operand-type", message, number_help(&given));
                }
            }
            Expr::InList { expr: inner, list, .. } => self.same(expr, std::iter::once(inner.as_ref()).chain(list), true),
            Expr::Between { expr: inner, low, high, .. } => {
                self.ordered(expr, &[inner.as_ref(), low.as_ref(), high.as_ref()]);
                self.same(expr, [inner.as_ref(), low.as_ref(), high.as_ref()].into_iter(), true)
            }
            Expr::Case { conditions, else_result, .. } => {
                let results = conditions.iter().map(|when| &when.result).chain(else_result.as_deref());
                self.same(expr, results, false);
            }
            Expr::Extract { expr: inner, field, .. } if !is_fine(&field.to_string(), "date_part") => {
                self.utc(expr, inner, &format!("EXTRACT({field} …)"))
            }
            Expr::Ceil { expr: inner, .. } | Expr::Floor { expr: inner, .. } => {
                if let Some(given) = self.types.of(inner)
                    && !is_number(&given)
                    && !given.is_null()
                {
                    let message = format!("`{expr}`: the number is {}", describe(&given));
                    self.error(inner, "argument-type", message, number_help(&given));
                }
            }
            Expr::TypedString(literal) => {
                let text = literal.value.value.to_string();
                self.date(expr, text.trim_matches('\''));
            }
            _ => {}
        }
        if !self.holds_wrong(expr) && self.types.of(expr).is_some_and(|data_type| has_float(&data_type)) {
            let help = match plain(expr) {
                Expr::Cast { .. } => "write CAST(… AS DECIMAL(38, 18)), or no cast: quantities are exact",
                Expr::Function(call) if call_name(call).as_deref() == Some("date_part") => "write seconds_between(from, to)",
                _ => "use DECIMAL(38, 18); an average is sum(x) / count(x)",
            };
            self.error(expr, "float", "a floating-point number cannot hold money exactly", help);
        }
    }

    /// The instants of AS OF.
    fn versions(&mut self, select: &sqlparser::ast::Select) {
        let factors: Vec<&TableFactor> = crate::tree::relations(select).collect();
        for factor in factors {
            let TableFactor::Table { version: Some(TableVersion::ForSystemTimeAsOf(instant)), .. } = factor else { continue };
            if let Some(given) = self.types.of(instant)
                && !is_instant(&given)
            {
                let message = format!("AS OF takes an instant, not {}", describe(&given));
                self.error(instant, "as-of-type", message, "write u.time or w.window_start");
            }
        }
    }

    fn call(&mut self, expr: &Expr, call: &Function) {
        let Some(name) = call_name(call) else { return };
        if matches!(name.as_str(), "date_trunc" | "date_part" | "datepart" | "datetrunc")
            && let [unit, instant] = arguments(call).as_slice()
            && !is_fine(text_literal(unit).unwrap_or_default(), &name)
        {
            self.utc(expr, instant, &format!("`{name}`"));
        }
        if matches!(name.as_str(), "coalesce" | "greatest" | "least" | "nullif" | "nvl") {
            let arguments: Vec<Expr> = arguments(call).into_iter().cloned().collect();
            if matches!(name.as_str(), "greatest" | "least") {
                self.ordered(expr, &arguments.iter().collect::<Vec<_>>());
            }
            return self.same(expr, arguments.iter(), false);
        }
        if matches!(name.as_str(), "min" | "max")
            && let [value] = arguments(call).as_slice()
        {
            self.ordered(expr, &[value]);
        }
        let Some(signature) = signature(&name) else { return };
        let FunctionArguments::List(list) = &call.args else { return };
        let given: Vec<Expr> = arguments(call).into_iter().cloned().collect();
        if given.len() != list.args.len() {
            return;
        }
        let usage = format!("write {}", signature.usage());
        if !signature.takes(given.len()) {
            let missing = signature.parameters.get(given.len()).filter(|_| given.len() < signature.required);
            let missing = missing.map_or_else(String::new, |parameter| format!("; `{}` is missing", parameter.name));
            let count = match given.len() {
                1 => "1 argument".to_owned(),
                number => format!("{number} arguments"),
            };
            return self.error(expr, "argument-count", format!("`{name}` is called with {count}{missing}"), &usage);
        }
        if name == "percentile" && number_literal(&given[0]).is_some() && number_literal(&given[1]).is_none() {
            let place = self.reading.source.between(&given[0], &given[1]);
            self.reading.error("argument-order", place, "the value stands first, the percentage second", &usage);
            self.wrong.push(expr.clone());
            return;
        }
        for (argument, parameter) in given.iter().zip(&signature.parameters) {
            let Some(data_type) = self.types.of(argument) else { continue };
            if !parameter.accepts(&data_type) {
                let shown = if has_float(&data_type) { return } else { describe(&data_type) };
                let message = format!("`{name}`: `{}` is {}, not {shown}", parameter.name, parameter.describe());
                let help = conversion(*parameter, &data_type).map_or_else(|| usage.clone(), |help| format!("{help}; {usage}"));
                self.error(argument, "argument-type", message, &help);
                self.wrong.push(expr.clone());
                return;
            }
            let wrong = match (text_literal(argument), number_literal(argument)) {
                (Some(text), _) => parameter.wrong_text(&name, text),
                (_, Some(digits)) => {
                    digits.parse::<Decimal>().ok().and_then(|number| parameter.wrong_number(&name, number)).map(str::to_owned)
                }
                _ => None,
            };
            if let Some(message) = wrong {
                self.error(argument, "argument-value", format!("`{name}`: {message}"), &usage);
                self.wrong.push(expr.clone());
                return;
            }
        }
        if name == "time_bucket"
            && given.len() == 2
            && text_literal(&given[1]).is_some_and(|length| ["day", "week", "month", "quarter", "year"].contains(&length))
        {
            self.error(
                expr,
                "argument-count",
                "a calendar period begins at another instant in every zone",
                "write time_bucket(instant, 'day', timezone)",
            );
        }
        self.named_order(&name, &given);
    }

    /// Arguments whose names say that they stand in each other's place.
    fn named_order(&mut self, name: &str, given: &[Expr]) {
        if !matches!(name, "prorate" | "prorate_by_day") || given.len() < 5 {
            return;
        }
        let called =
            |index: usize, wanted: &str| column_name(&given[index]).is_some_and(|column| column.value.eq_ignore_ascii_case(wanted));
        if called(1, "window_start") && called(2, "window_end") && !called(3, "window_start") {
            let place = self.reading.source.between(&given[1], &given[4]);
            let help = "write prorate(amount, active_from, active_to, window_start, window_end)";
            self.reading.warn(
                "argument-order",
                place,
                "the window stands last: this is the share of the window in the time that it is active",
                help,
            );
        }
    }

    fn cast(&mut self, expr: &Expr, kind: &CastKind, inner: &Expr, target: &SqlType) {
        if let SqlType::Custom(name, _) = target {
            let help = format!(
                "types are DECIMAL(38, 18), BIGINT, VARCHAR, BOOLEAN, DATE and TIMESTAMP{}",
                did_you_mean(&name.to_string().to_uppercase(), ["DECIMAL", "BIGINT", "VARCHAR", "BOOLEAN", "DATE", "TIMESTAMP"])
            );
            return self.error(expr, "type-unknown", format!("there is no type `{name}`"), &help);
        }
        if matches!(kind, CastKind::TryCast | CastKind::SafeCast) {
            return self.error(
                expr,
                "lossy-cast",
                "TRY_CAST turns what does not fit into null",
                "write CAST, and coalesce where a value may be null",
            );
        }
        let Some(from) = self.types.of(inner) else { return };
        let Some(to) = self.types.of(expr) else { return };
        if let Some(message) = lossy(&from, &to) {
            let help = match (&from, target) {
                (from, _) if from.is_string() => "write parse_decimal(text)",
                (_, SqlType::Numeric(info) | SqlType::Decimal(info) | SqlType::Dec(info))
                    if *info == sqlparser::ast::ExactNumberInfo::None =>
                {
                    "without numbers it means DECIMAL(38, 10): write DECIMAL(38, 18), or no cast"
                }
                (_, _) if to.is_integer() => "write floor(x), ceil(x) or round(x)",
                (_, _) if matches!(to, DataType::Decimal256(..)) => "write DECIMAL(38, 18)",
                _ => "write round(x, 2)",
            };
            return self.error(expr, "lossy-cast", message, help);
        }
        if is_instant(&from) && matches!(to, DataType::Date32 | DataType::Date64) {
            self.utc(expr, inner, "CAST AS DATE");
        }
        if let Some(text) = text_literal(inner)
            && is_time(&to)
        {
            self.date(inner, text);
        }
    }

    /// A calendar question that is answered in UTC.
    fn utc(&mut self, expr: &Expr, instant: &Expr, what: &str) {
        let zone = self.reading.options.timezone.clone();
        if zone != "UTC" && self.types.of(instant).is_some_and(|data_type| is_instant(&data_type)) {
            let help = format!("write local_date(instant, '{zone}'), time_bucket(instant, 'day', '{zone}') or in_time_of_day(…)");
            self.warn(expr, "utc-calendar", format!("{what} counts in UTC; the rule's zone is {zone}"), &help);
        }
    }

    fn binary(&mut self, expr: &Expr, left: &Expr, op: &BinaryOperator, right: &Expr) {
        if matches!(op, BinaryOperator::Lt | BinaryOperator::LtEq | BinaryOperator::Gt | BinaryOperator::GtEq) {
            self.ordered(expr, &[left, right]);
        }
        match op {
            BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq => self.same(expr, [left, right].into_iter(), true),
            BinaryOperator::Plus | BinaryOperator::Minus | BinaryOperator::Multiply | BinaryOperator::Divide | BinaryOperator::Modulo => {
                self.arithmetic(expr, left, op, right);
            }
            _ => {}
        }
    }

    fn arithmetic(&mut self, expr: &Expr, left: &Expr, op: &BinaryOperator, right: &Expr) {
        let (Some(a), Some(b)) = (self.types.of(left), self.types.of(right)) else { return };
        let is_period = |data_type: &DataType| matches!(data_type, DataType::Interval(_) | DataType::Duration(_));
        for (operand, data_type, other) in [(left, &a, &b), (right, &b, &a)] {
            let wrong =
                data_type.is_string() || *data_type == DataType::Boolean || matches!(data_type, DataType::List(_) | DataType::Map(..));
            if wrong && !other.is_null() {
                let message = format!("`{op}` takes numbers; `{operand}` is {}", describe(data_type));
                let code = "operand-type";
                let help = number_help(data_type);
                return self.error(expr, code, message, help);
            }
        }
        if is_instant(&a) && is_period(&b) && *op != BinaryOperator::Multiply && calendar_interval(right) {
            let zone = self.reading.options.timezone.clone();
            if zone != "UTC" {
                let help = format!(
                    "write local_midnight(add_months(local_date(instant, '{zone}'), …), '{zone}'), or take a bound of billing_window"
                );
                self.warn(expr, "utc-calendar", format!("a day of 24 hours is added; days in {zone} can have 23 or 25"), &help);
            }
        }
        if *op == BinaryOperator::Divide
            && a.is_integer()
            && b.is_integer()
            && column_name(left).is_some()
            && number_literal(right).is_some()
        {
            self.warn(
                expr,
                "integer-division",
                "whole numbers divide exactly here: 7 / 2 is 3.5",
                "write floor(a / b) for whole steps, or round(a / b, places)",
            );
        }
    }

    /// Texts of which the greater is asked for: those of numbers are not in the order of the numbers.
    fn ordered(&mut self, expr: &Expr, parts: &[&Expr]) {
        let is_text = |part: &&&Expr| self.types.of(part).is_some_and(|data_type| data_type.is_string());
        if parts.iter().filter(is_text).count() < parts.len() {
            return;
        }
        let literals: Vec<&str> = parts.iter().filter_map(|part| text_literal(part)).collect();
        let is_number = |text: &&str| text.parse::<Decimal>().is_ok();
        let attribute = parts.iter().find(|part| is_attribute(part));
        let doubtful = if literals.is_empty() { attribute.is_some() } else { literals.iter().any(is_number) };
        let Some(text) = attribute.or_else(|| parts.iter().find(|part| text_literal(part).is_none())).filter(|_| doubtful) else { return };
        let help = format!("where these are numbers, write parse_decimal({text})");
        self.warn(expr, "text-order", "texts are compared letter by letter: '9' is greater than '100'", &help);
    }

    /// Values that are compared, or that stand for one another, are of one kind.
    fn same<'e>(&mut self, expr: &Expr, parts: impl Iterator<Item = &'e Expr>, compared: bool) {
        let typed: Vec<(&Expr, DataType)> = parts.filter_map(|part| Some((part, self.types.of(part)?))).collect();
        let Some((text, _)) = typed.iter().find(|(_, data_type)| data_type.is_string()) else { return };
        if let Some((_, other)) = typed.iter().find(|(_, data_type)| is_time(data_type)) {
            for (part, _) in typed.iter().filter(|(_, data_type)| data_type.is_string()) {
                match text_literal(part) {
                    Some(literal) => self.date(part, literal),
                    None => {
                        let message = format!("a text is compared with {}", describe(other));
                        self.warn(expr, "implicit-cast", message, "declare the column as a date or a timestamp");
                    }
                }
            }
            return;
        }
        let Some((number, _)) = typed.iter().find(|(_, data_type)| is_number(data_type)) else { return };
        if !compared {
            let message = format!("`{text}` is a text among numbers");
            return self.error(text, "implicit-cast", message, "write every value as a number; a text becomes one by parse_decimal(text)");
        }
        let help = match (number_literal(number), text_literal(text)) {
            (Some(digits), _) => format!("write '{digits}', or parse_decimal({text})"),
            (_, Some(literal)) => format!("write {literal} without quotes"),
            _ => "write parse_decimal(text)".to_owned(),
        };
        self.warn(expr, "implicit-cast", "a text is compared with a number; as texts '0042' and '42' differ", &help);
    }

    /// A literal that is to be a date or an instant.
    fn date(&mut self, literal: &Expr, text: &str) {
        let date = text.get(..10).unwrap_or(text);
        if ratemill_schemas::windows::days_of_date(date).is_err() {
            self.error(literal, "date-invalid", format!("there is no date `{text}`"), "a date is written 2026-06-30");
        }
    }
}

/// Whether it is, or is made of, a field of the event that is no column.
fn is_attribute(expr: &Expr) -> bool {
    crate::tree::any(expr, |part| matches!(part, Expr::CompoundFieldAccess { .. }) && part.to_string().contains("attributes["))
}

fn number_help(data_type: &DataType) -> &'static str {
    if data_type.is_string() { "write parse_decimal(text), or the number without quotes" } else { "write a number" }
}

/// Units of time that are the same in every zone.
fn is_fine(unit: &str, function: &str) -> bool {
    let unit = unit.to_lowercase();
    ["minute", "second", "millisecond", "microsecond"].contains(&unit.as_str()) || (unit == "hour" && function.ends_with("trunc"))
}

/// An interval literal of days or more.
fn calendar_interval(expr: &Expr) -> bool {
    let Expr::Interval(interval) = plain(expr) else { return false };
    let text = interval.to_string().to_lowercase();
    ["day", "week", "month", "quarter", "year"].iter().any(|unit| text.contains(unit))
}

/// How to come from a type to the one that is wanted.
fn conversion(parameter: Parameter, given: &DataType) -> Option<&'static str> {
    if parameter.is_instant() && matches!(given, DataType::Date32) {
        return Some("local_midnight(date, timezone) is the instant at which a date begins");
    }
    if parameter.is_date() && is_instant(given) {
        return Some("local_date(instant, timezone) is the date of an instant");
    }
    if parameter.is_number() && given.is_string() {
        return Some("parse_decimal(text) is the number of a text");
    }
    if parameter.is_list() && matches!(given, DataType::List(_)) {
        return Some("the list comes from another kind of reference table");
    }
    if parameter.is_list() {
        return Some("a list is the tiers column, or one of [lists], of a reference table");
    }
    None
}

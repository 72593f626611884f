//! One case of a conformance file.

use std::collections::BTreeMap;

use ratemill_schemas::Rounding;
use serde_json::{Map, Value};

use super::path::descend;

/// What to compute, and the figures to meet.
#[derive(Debug, Clone)]
pub struct Case {
    /// Unique in its file.
    pub id: String,
    /// Which rule prices it.
    pub model: String,
    /// The figures by name: scalars, lists or objects.
    pub expected: Map<String, Value>,
    /// How a figure is rounded before it is compared; those not named are exact.
    pub rounding: BTreeMap<String, FigureRounding>,
    json: Value,
}

/// Rounding of one figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FigureRounding {
    /// How digits are dropped.
    pub mode: Rounding,
    /// Digits kept after the point; below 0 tens and hundreds.
    pub places: i32,
}

/// A case that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Its id, or `case N`.
    pub id: String,
    /// Its model, or `?`.
    pub model: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Case {
    /// Reads the case that stands at `position` (from 1) of its file.
    ///
    /// # Errors
    /// [`Malformed`] when it is no object or lacks what every case has.
    pub fn read(position: usize, json: Value) -> Result<Self, Malformed> {
        let word = |name: &str| json.get(name).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
        let malformed = |reason: String| Malformed {
            id: word("id").map_or_else(|| format!("case {position}"), str::to_owned),
            model: word("model").unwrap_or("?").to_owned(),
            reason,
        };
        if !json.is_object() {
            return Err(malformed("the case is not an object".to_owned()));
        }
        let Some(id) = word("id") else { return Err(malformed("`id` is missing or no text".to_owned())) };
        let Some(model) = word("model") else { return Err(malformed("`model` is missing or no text".to_owned())) };
        for name in ["params", "input"] {
            if !json.get(name).is_some_and(Value::is_object) {
                return Err(malformed(format!("`{name}` is missing or no object")));
            }
        }
        let expected = match json.get("expected").and_then(Value::as_object) {
            Some(expected) if !expected.is_empty() => expected.clone(),
            _ => return Err(malformed("`expected` is missing or names no figure".to_owned())),
        };
        let rounding = roundings(&json).map_err(malformed)?;
        let (id, model) = (id.to_owned(), model.to_owned());
        Ok(Self { id, model, expected, rounding, json })
    }

    /// The value at the end of a path through the case; null counts as absent.
    #[must_use]
    pub fn field(&self, path: &[String]) -> Option<&Value> {
        descend(&self.json, path)
    }
}

fn roundings(json: &Value) -> Result<BTreeMap<String, FigureRounding>, String> {
    let given = match json.get("rounding") {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(given)) => given,
        Some(_) => return Err("`rounding` is no object".to_owned()),
    };
    given
        .iter()
        .map(|(figure, rounding)| {
            let mode = rounding.get("mode").and_then(Value::as_str).and_then(mode_of);
            let places = rounding.get("dp").and_then(Value::as_i64).and_then(|places| i32::try_from(places).ok());
            match (mode, places) {
                (Some(mode), Some(places)) => Ok((figure.clone(), FigureRounding { mode, places })),
                _ => Err(format!(
                    "the rounding of `{figure}` has no `mode` (half_up, half_even, ceil, floor, up, down) or no whole number `dp`"
                )),
            }
        })
        .collect()
}

fn mode_of(text: &str) -> Option<Rounding> {
    Some(match text {
        "half_up" => Rounding::HalfUp,
        "half_even" => Rounding::HalfEven,
        "up" => Rounding::Up,
        "down" => Rounding::Down,
        "ceil" | "ceiling" => Rounding::Ceiling,
        "floor" => Rounding::Floor,
        _ => return None,
    })
}

/// The text of a scalar as it was written.
///
/// # Errors
/// For lists, objects, null, and numbers with a fraction: JSON readers keep those as floats.
pub fn scalar_text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
        Value::Number(number) => Err(format!("is the bare number {number}; a decimal is written as a text")),
        Value::Null => Err("is null".to_owned()),
        Value::Array(_) | Value::Object(_) => Err("is a list or an object, which only a text column can hold".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_malformed_case_says_what_it_lacks() {
        let sound = json!({"id": "a", "model": "m", "params": {}, "input": {}, "expected": {"amount": "1"}});
        assert!(Case::read(1, sound.clone()).is_ok());
        for (field, value, reason) in [
            ("id", json!(7), "`id` is missing or no text"),
            ("model", Value::Null, "`model` is missing or no text"),
            ("params", json!([]), "`params` is missing or no object"),
            ("input", Value::Null, "`input` is missing or no object"),
            ("expected", json!({}), "`expected` is missing or names no figure"),
            ("rounding", json!("up"), "`rounding` is no object"),
        ] {
            let mut case = sound.clone();
            case[field] = value;
            assert_eq!(Case::read(1, case).unwrap_err().reason, reason);
        }
        let error = Case::read(3, json!(["a"])).unwrap_err();
        assert_eq!((error.id.as_str(), error.model.as_str()), ("case 3", "?"));
    }

    #[test]
    fn roundings_are_read_by_figure() {
        let case = |mode: &str, places: Value| {
            let rounding = json!({"amount": {"mode": mode, "dp": places}});
            let json = json!({"id": "a", "model": "m", "params": {}, "input": {}, "expected": {"amount": "1"}, "rounding": rounding});
            Case::read(1, json).map(|case| case.rounding.get("amount").copied())
        };
        assert_eq!(case("ceil", json!(-2)), Ok(Some(FigureRounding { mode: Rounding::Ceiling, places: -2 })));
        assert_eq!(case("half_up", json!(2)), Ok(Some(FigureRounding { mode: Rounding::HalfUp, places: 2 })));
        assert!(case("nearest", json!(2)).is_err());
        assert!(case("floor", json!("2")).is_err());
    }
}

//! One JSON object as flat fields: `{"data": {"kwh": 1.5}}` is the field `data.kwh`.

use std::borrow::Cow;
use std::fmt;

use ratemill_schemas::Reason;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::quick;

/// Most fields of one record.
pub(super) const FIELDS_MAX: usize = 512;

/// A value with the text that it had: numbers are never read as floats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// `null`, or an empty CSV field.
    Null,
    /// A text.
    Text(Cow<'a, str>),
    /// A number, as written.
    Number(Cow<'a, str>),
    /// `true` or `false`.
    Boolean(&'a str),
    /// An array, as written.
    Json(&'a str),
}

impl<'a> Value<'a> {
    /// The value as a text, `None` for null.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Null => None,
            Self::Text(text) | Self::Number(text) => Some(text),
            Self::Boolean(text) | Self::Json(text) => Some(text),
        }
    }

    fn from_raw(raw: &'a str) -> Self {
        match raw.as_bytes()[0] {
            b'"' => {
                let inner = &raw[1..raw.len() - 1];
                if inner.contains('\\') {
                    // RawValue has checked the syntax; only a lone surrogate can fail here, and is then kept as written.
                    Self::Text(serde_json::from_str::<String>(raw).map_or(Cow::Borrowed(inner), Cow::Owned))
                } else {
                    Self::Text(Cow::Borrowed(inner))
                }
            }
            b'n' => Self::Null,
            b't' | b'f' => Self::Boolean(raw),
            b'[' => Self::Json(raw),
            _ => Self::Number(Cow::Borrowed(raw)),
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) prefix: Cow<'a, str>,
    pub(super) key: Cow<'a, str>,
    pub(super) value: Value<'a>,
}

impl Entry<'_> {
    fn is(&self, name: &str) -> bool {
        if self.prefix.is_empty() {
            return self.key == name;
        }
        let (name, prefix) = (name.as_bytes(), self.prefix.as_bytes());
        name.len() == prefix.len() + 1 + self.key.len()
            && name[prefix.len()] == b'.'
            && name.starts_with(prefix)
            && name.ends_with(self.key.as_bytes())
    }

    fn name(&self) -> String {
        if self.prefix.is_empty() { self.key.to_string() } else { [&self.prefix, ".", &self.key].concat() }
    }

    /// The name of the field of the record itself that it is, or lies below.
    fn top(&self) -> &str {
        if self.prefix.is_empty() {
            return &self.key;
        }
        match self.prefix.bytes().position(|byte| byte == b'.') {
            Some(0) => &self.key,
            Some(end) => &self.prefix[..end],
            None => &self.prefix,
        }
    }

    /// A bit for it among 64: of equal names it is the same.
    fn bit(&self) -> u64 {
        let sum = self.key.bytes().fold(self.prefix.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        1 << (sum % 61)
    }
}

/// The fields of one record, in order.
#[derive(Debug, Default)]
pub struct Fields<'a> {
    entries: Vec<Entry<'a>>,
}

impl<'a> Fields<'a> {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// The reason and message of the rejection.
    pub fn parse(raw: &'a str, depth_max: usize) -> Result<Self, (Reason, String)> {
        match Self::parse_quickly(raw, depth_max) {
            Some(parsed) => parsed,
            None => Self::parse_slowly(raw, depth_max),
        }
    }

    /// The same where the object is plain.
    pub(super) fn parse_quickly(raw: &'a str, depth_max: usize) -> Option<Result<Self, (Reason, String)>> {
        Some(Self::of(quick::entries(raw, depth_max)?))
    }

    /// The fields of a record, none of which may be there twice.
    pub(super) fn of(entries: Vec<Entry<'a>>) -> Result<Self, (Reason, String)> {
        let fields = Self { entries };
        fields.refuse_duplicates().map(|()| fields)
    }

    /// The same, whatever the object is.
    pub(super) fn parse_slowly(raw: &'a str, depth_max: usize) -> Result<Self, (Reason, String)> {
        let mut fields = Self { entries: Vec::with_capacity(16) };
        fields.object(raw, Cow::Borrowed(""), depth_max)?;
        fields.refuse_duplicates()?;
        Ok(fields)
    }

    /// Adds a field of a record that is no JSON object.
    pub fn push(&mut self, name: impl Into<Cow<'a, str>>, value: Value<'a>) {
        self.entries.push(Entry { prefix: Cow::Borrowed(""), key: name.into(), value });
    }

    /// Sets a field, in place of a null that is there.
    pub fn set(&mut self, name: &'a str, value: Value<'a>) {
        match self.entries.iter_mut().find(|entry| entry.is(name)) {
            Some(entry) => entry.value = value,
            None => self.push(name, value),
        }
    }

    /// Adds the fields of a JSON object below `prefix`.
    ///
    /// # Errors
    /// As [`Fields::parse`].
    pub fn push_object(&mut self, prefix: &'static str, raw: &'a str, depth_max: usize) -> Result<(), (Reason, String)> {
        self.object(raw, Cow::Borrowed(prefix), depth_max)?;
        self.refuse_duplicates()
    }

    /// The value of a field; `None` where it is absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.entries.iter().find(|entry| entry.is(name)).map(|entry| &entry.value)
    }

    /// Whether any field lies below `prefix`.
    #[must_use]
    pub fn has_object(&self, prefix: &str) -> bool {
        self.entries.iter().any(|entry| !entry.prefix.is_empty() && entry.top() == prefix)
    }

    /// The fields as one JSON object, values as texts: the raw record of a row that came in a columnar file.
    pub(crate) fn to_json(&self) -> String {
        let object: serde_json::Map<String, serde_json::Value> =
            self.entries.iter().map(|entry| (entry.name(), entry.value.text().map_or(serde_json::Value::Null, Into::into))).collect();
        serde_json::Value::Object(object).to_string()
    }

    /// Names of the fields of the record itself, those below an object by the object's name.
    pub(crate) fn attribute_names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(Entry::top)
    }

    /// Every field that `used` does not claim, with its full name.
    pub(crate) fn rest(&self, used: impl Fn(&dyn Fn(&str) -> bool) -> bool) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
        self.entries
            .iter()
            .filter(|entry| !used(&|name| entry.is(name)))
            .filter_map(|entry| entry.value.text().map(|text| (Cow::Owned(entry.name()), Cow::Borrowed(text))))
            .collect()
    }

    /// The same, where `layout` is kept from record to record: most are laid out like the one before.
    pub(crate) fn rest_like<'f>(
        &'f self,
        layout: &'f mut Layout,
        used: impl Fn(&dyn Fn(&str) -> bool) -> bool,
    ) -> Vec<(Cow<'f, str>, Cow<'f, str>)> {
        if !layout.is_of(self) {
            *layout = Layout::of(self, used);
        }
        let rest = self.entries.iter().zip(&layout.0);
        rest.filter_map(|(entry, place)| Some((Cow::Borrowed(place.rest.as_deref()?), Cow::Borrowed(entry.value.text()?)))).collect()
    }

    fn object(&mut self, raw: &'a str, prefix: Cow<'a, str>, depth: usize) -> Result<(), (Reason, String)> {
        let Some(depth) = depth.checked_sub(1) else {
            return Err((Reason::TooDeep, "the record is nested deeper than the limit".to_owned()));
        };
        let mut nested = Vec::new();
        let mut deserializer = serde_json::Deserializer::from_str(raw);
        let result = ObjectSeed { fields: self, nested: &mut nested, prefix: &prefix }
            .deserialize(&mut deserializer)
            .and_then(|()| deserializer.end());
        if let Err(error) = result {
            return Err(if error.is_data() {
                (Reason::NotAnObject, "the record is JSON, but not an object".to_owned())
            } else {
                (Reason::NotJson, format!("not JSON: {error}"))
            });
        }
        for (key, value) in nested {
            let name = if prefix.is_empty() { key } else { Cow::Owned(format!("{prefix}.{key}")) };
            if value.len() == 2 || value[1..value.len() - 1].trim_ascii().is_empty() {
                // An empty object has no fields, but it is there.
                self.entries.push(Entry { prefix: name, key: Cow::Borrowed(""), value: Value::Null });
            } else {
                self.object(value, name, depth)?;
            }
        }
        if self.entries.len() > FIELDS_MAX {
            return Err((Reason::TooManyFields, format!("the record has more than {FIELDS_MAX} fields")));
        }
        if self.entries.iter().any(|entry| matches!(entry.value, Value::Json(raw) if nesting(raw) > depth)) {
            return Err((Reason::TooDeep, "the record is nested deeper than the limit".to_owned()));
        }
        Ok(())
    }

    fn refuse_duplicates(&self) -> Result<(), (Reason, String)> {
        // `{"a": {"b": 1}, "a.b": 2}` has one name twice.
        let dotted = self.entries.iter().any(|entry| entry.key.contains('.'));
        let mut seen = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            let bit = entry.bit();
            if !dotted && seen & bit == 0 {
                seen |= bit;
                continue;
            }
            let before = &self.entries[..index];
            let twice = if dotted {
                let name = entry.name();
                before.iter().any(|other| other.is(&name) || other.name() == name)
            } else {
                before.iter().any(|other| other.key == entry.key && other.prefix == entry.prefix)
            };
            if twice {
                return Err((Reason::DuplicateField, format!("field `{}` occurs twice", entry.name())));
            }
        }
        Ok(())
    }
}

/// The names of a record's fields in their order, and which of them nobody claims.
#[derive(Debug, Default)]
pub(crate) struct Layout(Vec<Placed>);

#[derive(Debug)]
struct Placed {
    prefix: Box<str>,
    key: Box<str>,
    /// Its full name, where nobody claims it.
    rest: Option<Box<str>>,
}

impl Layout {
    fn of(fields: &Fields<'_>, used: impl Fn(&dyn Fn(&str) -> bool) -> bool) -> Self {
        let placed = |entry: &Entry<'_>| Placed {
            prefix: entry.prefix.as_ref().into(),
            key: entry.key.as_ref().into(),
            rest: (!used(&|name| entry.is(name))).then(|| entry.name().into()),
        };
        Self(fields.entries.iter().map(placed).collect())
    }

    fn is_of(&self, fields: &Fields<'_>) -> bool {
        let same = |(placed, entry): (&Placed, &Entry<'_>)| *placed.key == *entry.key && *placed.prefix == *entry.prefix;
        self.0.len() == fields.entries.len() && self.0.iter().zip(&fields.entries).all(same)
    }
}

/// How deep brackets nest in valid JSON, those inside texts apart.
fn nesting(raw: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in raw.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A key, borrowed from the text where it has no escapes.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

struct ObjectSeed<'f, 'a> {
    fields: &'f mut Fields<'a>,
    nested: &'f mut Vec<(Cow<'a, str>, &'a str)>,
    prefix: &'f Cow<'a, str>,
}

impl<'a> DeserializeSeed<'a> for ObjectSeed<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for ObjectSeed<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let raw = map.next_value::<&'a RawValue>()?.get();
            if raw.starts_with('{') {
                self.nested.push((key, raw));
            } else {
                self.fields.entries.push(Entry { prefix: self.prefix.clone(), key, value: Value::from_raw(raw) });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn flattens_and_keeps_the_text_of_numbers() {
        let fields = Fields::parse(r#"{"a":1.10,"data":{"kwh":"2","deep":{"x":true}},"e":"q\"q","l":[1,2],"n":null}"#, 8).unwrap();
        assert_eq!(fields.get("a"), Some(&Value::Number("1.10".into())));
        assert_eq!(fields.get("data.kwh"), Some(&Value::Text("2".into())));
        assert_eq!(fields.get("data.deep.x"), Some(&Value::Boolean("true")));
        assert_eq!(fields.get("e").and_then(Value::text), Some("q\"q"));
        assert_eq!(fields.get("l").and_then(Value::text), Some("[1,2]"));
        assert!(fields.has_object("data") && !fields.has_object("a"));
        let rest = fields.rest(|is| is("a") || is("data.kwh"));
        assert_eq!(rest.len(), 3);
        // The same by the layout of this record, of another one, and of none.
        let mut layout = Layout::default();
        let other = Fields::parse(r#"{"a":1,"b":2,"e":"x","l":[1],"n":3,"data":{"kwh":"2","deep.x":1}}"#, 8).unwrap();
        let again = Fields::parse(r#"{"a":1,"e":"x","l":[1],"n":3,"data":{"kwh":"2","deep":{"x":1}}}"#, 8).unwrap();
        for fields in [&fields, &other, &fields, &fields, &again, &other, &Fields::default()] {
            assert_eq!(fields.rest_like(&mut layout, |is| is("a") || is("data.kwh")), fields.rest(|is| is("a") || is("data.kwh")));
        }
    }

    #[test]
    fn refuses_what_is_ambiguous_or_endless() {
        let reason = |text: &str| Fields::parse(text, 3).map(|_| ()).unwrap_err().0;
        assert_eq!(reason(r#"{"a":1,"a":2}"#), Reason::DuplicateField);
        assert_eq!(reason(r#"{"a":{"b":1},"a":{"b":2}}"#), Reason::DuplicateField);
        assert_eq!(reason(r#"{"a":{"b":1},"a.b":2}"#), Reason::DuplicateField);
        assert_eq!(reason(r#"{"a":{"b":{"c":{"d":1}}}}"#), Reason::TooDeep);
        assert_eq!(reason("[1]"), Reason::NotAnObject);
        assert_eq!(reason("{"), Reason::NotJson);
        assert_eq!(reason("{} {}"), Reason::NotJson);
        assert_eq!(reason(&format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000))), Reason::TooDeep);
    }
}

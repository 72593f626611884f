//! Plain JSON objects in one pass: what nearly every event is. Whatever is unusual in one is left to the JSON library, which
//! also says what is wrong with it.

use std::borrow::Cow;

use super::fields::{Entry, FIELDS_MAX, Value};

/// The entries of an object, as [`super::Fields::parse`] finds them; `None` where a text has escapes, a value is an array, or
/// anything is wrong. Duplicates are not looked for.
pub(super) fn entries(text: &str, depth_max: usize) -> Option<Vec<Entry<'_>>> {
    let mut scanner = Scanner { text, at: 0 };
    let mut entries = Vec::with_capacity(16);
    scanner.space();
    scanner.object(Cow::Borrowed(""), depth_max, &mut entries)?;
    scanner.space();
    (scanner.at == text.len() && entries.len() <= FIELDS_MAX).then_some(entries)
}

/// The objects of an array, one after the other.
#[derive(Debug)]
pub(super) struct Elements<'a> {
    scanner: Scanner<'a>,
    depth_max: usize,
    is_first: bool,
}

/// An object as written, and its entries.
pub(super) type Element<'a> = (&'a str, Vec<Entry<'a>>);

impl<'a> Elements<'a> {
    pub(super) fn of(text: &'a str, depth_max: usize) -> Self {
        Self { scanner: Scanner { text, at: 0 }, depth_max, is_first: true }
    }

    /// The next one, or `Some(None)` at the end of the array; `None` where the text is not an array of plain objects, each of
    /// which is as [`entries`] reads it.
    pub(super) fn next(&mut self) -> Option<Option<Element<'a>>> {
        let scanner = &mut self.scanner;
        if std::mem::take(&mut self.is_first) {
            scanner.expect(b'[')?;
        } else {
            scanner.space();
            match scanner.peek()? {
                b',' => scanner.at += 1,
                b']' => {
                    scanner.at += 1;
                    scanner.space();
                    return (scanner.at == scanner.text.len()).then_some(None);
                }
                _ => return None,
            }
        }
        scanner.space();
        let start = scanner.at;
        let mut entries = Vec::with_capacity(16);
        scanner.object(Cow::Borrowed(""), self.depth_max, &mut entries)?;
        (entries.len() <= FIELDS_MAX).then_some(Some((scanner.text.get(start..scanner.at)?, entries)))
    }
}

/// A place in a text.
#[derive(Debug)]
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.space();
        (self.peek() == Some(byte)).then(|| self.at += 1)
    }

    fn object(&mut self, prefix: Cow<'a, str>, depth: usize, entries: &mut Vec<Entry<'a>>) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.expect(b'{')?;
        self.space();
        // An empty object is there without having a field.
        if self.peek() == Some(b'}') {
            return None;
        }
        let mut deeper: Vec<Entry<'a>> = Vec::new();
        loop {
            self.space();
            let key = self.string()?;
            self.expect(b':')?;
            self.space();
            if self.peek() == Some(b'{') {
                let name = if prefix.is_empty() { Cow::Borrowed(key) } else { Cow::Owned(format!("{prefix}.{key}")) };
                self.object(name, depth, &mut deeper)?;
            } else {
                entries.push(Entry { prefix: prefix.clone(), key: Cow::Borrowed(key), value: self.value()? });
            }
            self.space();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => break,
                _ => return None,
            }
        }
        self.at += 1;
        entries.append(&mut deeper);
        Some(())
    }

    /// A text without escapes.
    fn string(&mut self) -> Option<&'a str> {
        (self.peek() == Some(b'"')).then_some(())?;
        let start = self.at + 1;
        let length = self.text.as_bytes().get(start..)?.iter().position(|byte| *byte < 0x20 || matches!(*byte, b'"' | b'\\'))?;
        self.at = start + length;
        (self.peek() == Some(b'"')).then(|| self.at += 1)?;
        self.text.get(start..start + length)
    }

    fn value(&mut self) -> Option<Value<'a>> {
        match self.peek()? {
            b'"' => self.string().map(|text| Value::Text(Cow::Borrowed(text))),
            b'n' => self.word("null").map(|_| Value::Null),
            b't' => self.word("true").map(Value::Boolean),
            b'f' => self.word("false").map(Value::Boolean),
            _ => self.number().map(|text| Value::Number(Cow::Borrowed(text))),
        }
    }

    fn word(&mut self, word: &str) -> Option<&'a str> {
        let found = self.text.get(self.at..self.at + word.len()).filter(|found| *found == word)?;
        self.at += word.len();
        Some(found)
    }

    /// A number as JSON has them, RFC 8259 section 6.
    fn number(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        let zero = self.peek() == Some(b'0');
        let whole = self.digits()?;
        if zero && whole > 1 {
            return None;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
        }
        self.text.get(start..self.at)
    }

    /// How many digits there are, at least one.
    fn digits(&mut self) -> Option<usize> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        (self.at > start).then_some(self.at - start)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use serde_json::value::RawValue;

    use super::super::Fields;
    use super::Elements;

    /// JSON texts, most of them objects of objects.
    fn json() -> impl Strategy<Value = String> {
        let space = prop::sample::select(vec!["", "", " ", "\t ", "\r\n"]);
        let scalar = prop_oneof![
            "[-]?(0|[1-9][0-9]{0,20})([.][0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
            "\"[ -!#-\\[\\]-~äß漢]{0,12}\"",
            prop::sample::select(vec![
                "true",
                "false",
                "null",
                "[1, {\"a\": 2}]",
                "\"a\\\"b\"",
                "\"\\ud800\"",
                "{}",
                "{ }",
                "01",
                "1.",
                "-",
                "nul"
            ])
            .prop_map(str::to_owned),
        ];
        scalar.prop_recursive(4, 24, 6, move |value| {
            let key = "\"[a-c.]{0,2}\"";
            prop::collection::vec((space.clone(), key, space.clone(), value), 0..6).prop_map(|members| {
                let members: Vec<String> =
                    members.into_iter().map(|(one, key, two, value)| format!("{one}{key}{two}:{one}{value}{two}")).collect();
                format!("{{{}}}", members.join(","))
            })
        })
    }

    /// What is read quickly is what the library reads.
    fn compare(text: &str) -> bool {
        let quick = Fields::parse_quickly(text, 4);
        let slow = Fields::parse_slowly(text, 4);
        match quick {
            None => false,
            Some(quick) => {
                assert_eq!(format!("{quick:?}"), format!("{slow:?}"), "{text}");
                true
            }
        }
    }

    /// An array that is read quickly has the elements that the library finds.
    fn compare_elements(text: &str) -> bool {
        let mut elements = Elements::of(text, 4);
        let mut found = Vec::new();
        loop {
            match elements.next() {
                None => return false,
                Some(None) => break,
                Some(Some((raw, entries))) => found.push((raw, format!("{entries:?}"))),
            }
        }
        let slow: Vec<&RawValue> = serde_json::from_str(text).unwrap();
        let entries = |raw: &str| format!("{:?}", super::entries(raw, 4).unwrap());
        assert_eq!(found, slow.iter().map(|raw| (raw.get(), entries(raw.get()))).collect::<Vec<_>>(), "{text}");
        true
    }

    /// Compares a text as it is, with one byte in the place of another, and up to that place.
    fn whole_damaged_and_cut(text: String, at: prop::sample::Index, byte: u8, compare: fn(&str) -> bool) {
        compare(&text);
        let mut damaged = text.into_bytes();
        let at = at.index(damaged.len());
        damaged[at] = byte;
        if let Ok(damaged) = String::from_utf8(damaged.clone()) {
            compare(&damaged);
        }
        damaged.truncate(at);
        if let Ok(cut) = String::from_utf8(damaged) {
            compare(&cut);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn an_array_that_is_read_quickly_has_the_elements_that_the_library_finds(
            elements in prop::collection::vec(json(), 0..4),
            space in prop::sample::select(vec!["", " ", "\n"]),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let text = format!("{space}[{space}{}{space}]{space}", elements.join(&format!("{space},{space}")));
            whole_damaged_and_cut(text, at, byte, compare_elements);
        }

        #[test]
        fn what_is_read_quickly_is_what_the_library_reads(text in json(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            whole_damaged_and_cut(text, at, byte, compare);
        }
    }

    #[test]
    fn events_are_read_quickly() {
        for text in [
            r#"{"specversion":"1.0","id":"a","data":{"value":1.50,"deep":{"unit":"kWh"}},"subject":"ä"}"#,
            r#" { "a" : -0.5e+3 , "b" : null , "data" : { "c" : true } } "#,
        ] {
            assert!(compare(text), "{text}");
        }
        assert!(compare_elements(r#" [ {"a":1} , {"b":{"c":"x"}}] "#));
        for text in ["[]", "[1]", r#"[{"a":1},]"#, r#"[{"a":1}"#, r#"[{"a":1}] x"#, r#"[{"a":"\n"}]"#, "{}", ""] {
            assert!(!compare_elements(text), "{text}");
        }
        for text in [r#"{"a":"\n"}"#, r#"{"a":[1]}"#, r#"{"a":{}}"#, "{}", r#"{"a":1,}"#, r#"{"a":01}"#, "[1]", "", r#"{"a":"#] {
            assert!(!compare(text), "{text}");
        }
    }
}

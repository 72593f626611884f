//! `disputed.toml`: cases whose expected figures are believed wrong, each with the arithmetic that says so.

use std::path::Path;

use toml::{Table, Value};

/// A case that is believed wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disputed {
    /// The case.
    pub id: String,
    /// How its figures come out by hand.
    pub arithmetic: String,
}

/// Reads the file in `folder`; none is an empty one.
///
/// # Errors
/// When it cannot be read.
pub fn read(folder: &Path) -> Result<Vec<Disputed>, String> {
    let path = folder.join("disputed.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text).map_err(|message| format!("{}: {message}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}

fn parse(text: &str) -> Result<Vec<Disputed>, String> {
    let document: Table = toml::from_str(text).map_err(|error| error.to_string())?;
    if let Some(key) = document.keys().find(|key| key.as_str() != "case") {
        return Err(format!("`{key}` is unknown; the file holds [[case]] with `id` and `arithmetic`"));
    }
    let cases = match document.get("case") {
        None => return Ok(Vec::new()),
        Some(Value::Array(cases)) => cases,
        Some(_) => return Err("cases are written [[case]]".to_owned()),
    };
    cases
        .iter()
        .map(|case| {
            let text = |name: &str| {
                case.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| format!("[[case]]: `{name}` is missing or no text"))
            };
            Ok(Disputed { id: text("id")?, arithmetic: text("arithmetic")? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_case_has_an_id_and_its_arithmetic() {
        let found = parse("[[case]]\nid = \"x-1\"\narithmetic = \"2 × 3 = 6, not 5\"\n").unwrap();
        assert_eq!(found, [Disputed { id: "x-1".to_owned(), arithmetic: "2 × 3 = 6, not 5".to_owned() }]);
        assert!(parse("").unwrap().is_empty());
        assert!(parse("[[case]]\nid = \"x-1\"\n").is_err());
        assert!(parse("[[cases]]\nid = \"x-1\"\n").is_err());
    }
}

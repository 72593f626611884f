//! `[[files]]` in `ratemill.toml`.

use std::time::Duration;

use ratemill_schemas::time::parse_duration;
use serde::Deserialize;

use crate::mapping::{MappingConfig, MappingError};

/// How a file is written. By default the ending of its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// CSV with a header.
    Csv,
    /// One JSON object a line.
    Ndjson,
    /// Apache Parquet.
    Parquet,
}

/// How a file is compressed, told by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    None,
    /// `.gz`.
    Gzip,
    /// `.zst`.
    Zstd,
}

/// What one JSON line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Records {
    /// A CloudEvent.
    #[default]
    CloudEvents,
    /// An object of any fields, read by the mapping.
    Plain,
}

/// One file drop.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// Name in messages, metrics and the rejected table; the default source of plain rows.
    pub name: String,
    /// A folder (relative to the project), `file:///…` or `s3://bucket/prefix`.
    pub url: String,
    /// By default told by the ending: `.csv`, `.ndjson`, `.jsonl`, `.parquet`, each with `.gz` or `.zst`.
    pub format: Option<FileFormat>,
    /// What a line of an NDJSON file is.
    #[serde(default)]
    pub records: Records,
    /// Fields of CSV, Parquet and plain JSON rows.
    #[serde(default)]
    pub mapping: MappingConfig,
    /// Fields that make the id of a row that has none.
    #[serde(default)]
    pub identity: Vec<String>,
    /// What divides the fields of a CSV row.
    #[serde(default = "comma")]
    pub delimiter: char,
    /// How long a file must not have changed before it is taken.
    #[serde(default = "five_seconds")]
    pub settle: String,
    /// How often to look.
    #[serde(default = "two_seconds")]
    pub poll: String,
    /// Old usage, whose event times move no watermark.
    #[serde(default)]
    pub historical: bool,
}

fn comma() -> char {
    ','
}
fn five_seconds() -> String {
    "5 seconds".to_owned()
}
fn two_seconds() -> String {
    "2 seconds".to_owned()
}

/// A file drop that cannot run.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A setting is out of its range.
    #[error("files `{name}`: {message}")]
    Setting {
        /// The drop.
        name: String,
        /// What is wrong and what would be valid.
        message: String,
    },
    /// The mapping cannot work.
    #[error("files `{name}`: {source}")]
    Mapping {
        /// The drop.
        name: String,
        /// Why.
        source: MappingError,
    },
}

impl FilesConfig {
    /// A drop of this name and place with everything else by default.
    #[must_use]
    pub fn named(name: &str, url: &str) -> Self {
        Self {
            name: name.to_owned(),
            url: url.to_owned(),
            format: None,
            records: Records::default(),
            mapping: MappingConfig::default(),
            identity: Vec::new(),
            delimiter: comma(),
            settle: five_seconds(),
            poll: two_seconds(),
            historical: false,
        }
    }

    /// Checks the times.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn check(&self) -> Result<(), FilesError> {
        self.settle().and(self.poll()).map(|_| ())
    }

    pub(super) fn settle(&self) -> Result<Duration, FilesError> {
        self.duration("settle", &self.settle)
    }

    pub(super) fn poll(&self) -> Result<Duration, FilesError> {
        Ok(self.duration("poll", &self.poll)?.max(Duration::from_millis(50)))
    }

    pub(super) fn delimiter_byte(&self) -> Result<u8, FilesError> {
        u8::try_from(self.delimiter)
            .ok()
            .filter(|byte| byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r'))
            .ok_or_else(|| self.wrong(format!("delimiter `{}` must be one ASCII character", self.delimiter)))
    }

    fn duration(&self, key: &str, text: &str) -> Result<Duration, FilesError> {
        parse_duration(text)
            .map(|micros| Duration::from_micros(micros.unsigned_abs()))
            .map_err(|message| self.wrong(format!("{key}: {message}")))
    }

    fn wrong(&self, message: String) -> FilesError {
        FilesError::Setting { name: self.name.clone(), message }
    }
}

/// Format and compression of a file by its name.
pub(super) fn of_name(path: &str, given: Option<FileFormat>) -> Option<(FileFormat, Compression)> {
    let lower = path.to_ascii_lowercase();
    let (stem, compression) = if let Some(stem) = lower.strip_suffix(".gz") {
        (stem, Compression::Gzip)
    } else if let Some(stem) = lower.strip_suffix(".zst") {
        (stem, Compression::Zstd)
    } else {
        (lower.as_str(), Compression::None)
    };
    let format = given.or_else(|| match stem.rsplit('.').next()? {
        "csv" => Some(FileFormat::Csv),
        "ndjson" | "jsonl" | "json" => Some(FileFormat::Ndjson),
        "parquet" => Some(FileFormat::Parquet),
        _ => None,
    })?;
    Some((format, compression))
}

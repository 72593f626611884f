//! The `files` table: one row for each file that was taken, or found changed after it was taken.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::time::instant_type;

/// What became of a file drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// All rows are durable.
    Taken,
    /// Its content changed after it was taken; it was not read again.
    Changed,
}

impl FileState {
    /// The word in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Changed => "changed",
        }
    }
}

/// A claim on one version of a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileClaim {
    /// Name of the configured file drop.
    pub connector: String,
    /// Path below the root of the drop.
    pub path: String,
    /// Entity tag of the store, or size and modification time where it has none.
    pub etag: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the content in hexadecimal; empty where a changed file was not read.
    pub content_hash: String,
    /// What became of it.
    pub state: FileState,
    /// Rows read, rejected ones included.
    pub rows: u64,
    /// Rows rejected.
    pub rejected: u64,
}

/// Columns: `claimed_at`, `connector`, `path`, `etag`, `size`, `content_hash`, `state`, `rows`, `rejected`.
#[must_use]
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("claimed_at", instant_type(), false),
        Field::new("connector", DataType::Utf8, false),
        Field::new("path", DataType::Utf8, false),
        Field::new("etag", DataType::Utf8, false),
        Field::new("size", DataType::Int64, false),
        Field::new("content_hash", DataType::Utf8, false),
        Field::new("state", DataType::Utf8, false),
        Field::new("rows", DataType::Int64, false),
        Field::new("rejected", DataType::Int64, false),
    ]))
}

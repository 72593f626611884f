//! Bytes to batches. Every transport's records pass through [`Collector`], so that all have the same checks.

mod changes;
pub mod cloudevents;
mod collector;
pub mod csv;
mod fields;
pub mod ndjson;
pub mod parquet;
mod quick;

use std::sync::Arc;

use ratemill_schemas::{EventHasher, UsageSchema};

pub use collector::{Collector, Place};
pub use fields::{Fields, Value};

/// What a decoder needs to know of the project.
#[derive(Debug, Clone)]
pub struct DecodeContext {
    /// The usage schema with the declared dimensions.
    pub schema: Arc<UsageSchema>,
    /// The key of this installation.
    pub hasher: EventHasher,
    /// How far ahead of the clock an event may be, in µs.
    pub future_skew: i64,
    /// Deepest nesting of a record.
    pub depth_max: usize,
    /// Largest record in bytes.
    pub record_bytes_max: usize,
}

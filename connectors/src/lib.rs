//! How usage arrives: MQTT, HTTP and file drops. Each connector turns bytes into a checked Arrow batch, submits it
//! to the [`intake::Intake`], and acknowledges its sender only after the answer says that the batch is durable.
//!
//! Connectors know neither rules nor the lake.
#![warn(missing_docs)]

pub mod decode;
pub mod files;
pub mod http;
pub mod intake;
pub mod mapping;
pub mod mqtt;

pub use intake::{AdoptedRows, Intake, IntakeError, QueueRoom, Receipt, Submission};

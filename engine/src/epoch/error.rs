//! Why an epoch fails.

use ratemill_rules::RateError;
use ratemill_schemas::windows::WindowError;

use crate::lake::LakeError;
use crate::log::LogError;

/// Why an epoch failed. It is tried again with the same manifest.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A rule.
    #[error(transparent)]
    Rate(#[from] RateError),
    /// A window outside the calendar.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// Arrow.
    #[error("epoch {epoch}: {source}")]
    Arrow {
        /// The epoch.
        epoch: i64,
        /// What Arrow said.
        source: arrow::error::ArrowError,
    },
    /// A query on the ledger.
    #[error("reading the ledger: {0}")]
    Query(#[from] datafusion::error::DataFusionError),
    /// The books of the epoch do not balance.
    #[error("epoch {epoch}: {message}; nothing was committed to the ledger")]
    Books {
        /// The epoch.
        epoch: i64,
        /// What differs.
        message: String,
    },
    /// A thread that worked for the epoch ended.
    #[error("a thread ended without its result: {0}")]
    Thread(String),
    /// More is in the log than a question reads: the lake takes it first.
    #[error("{records} records wait for the lake, more than running charges are evaluated with; ask again after the next epochs")]
    Behind {
        /// Records in the log that are not in the lake.
        records: i64,
    },
    /// A rule or reference version that a published window needs is not in the lake.
    #[error("rule `{rule}`, version {version}: {message}")]
    Version {
        /// The rule.
        rule: String,
        /// The version.
        version: String,
        /// What is missing or wrong.
        message: String,
    },
}

impl EpochError {
    /// Arrow's, where no epoch runs.
    pub(super) fn arrow(source: arrow::error::ArrowError) -> Self {
        Self::Query(source.into())
    }
}

//! Epochs make what the log holds permanent: manifest, usage, due windows, charges, completion record, trim.
//!
//! A manifest is written before any work and read again by a retry, so that a crash at any moment repeats the same
//! epoch. Every commit carries the epoch's number as an application transaction and happens once.

mod adopting;
mod apply;
mod asked;
mod audit;
mod books;
mod changes;
mod checkpoint;
mod draining;
mod due;
mod error;
mod explain;
mod finalized;
mod folds;
mod manifest;
mod mended;
mod moved;
mod open_windows;
mod openings;
mod pending;
mod periods;
mod questions;
mod rate;
mod reload;
mod run;
mod running;
mod running_table;
mod state;
mod tables;
mod tail;
mod unrated;
mod upkeep;
mod versions;

pub use apply::{Applied, ApplyError, ApplyRequest};
pub use audit::{AuditReport, Difference, LedgerAudit};
pub(crate) use books::{frame_keys, rejection_keys};
pub(crate) use changes::Changes;
pub use changes::EventId;
pub use due::Finalize;
pub use explain::{ChainRow, ChargeExplainer, ChargeExplanation, Columns, ExplainError, ReadCharge, Recomputed};
pub use manifest::{Completion, Manifest, latest_completion};
pub use mended::Examined;
pub use pending::{AmountChange, ChangeScope, PendingChanges, PendingWindow};
pub use periods::{ClosedPeriod, Closing, PeriodError, WaitingWindows};
pub use questions::{RunningQuestion, Unanswered};
pub use reload::Reloaded;
pub(crate) use run::OWNER;
pub use run::{EpochError, EpochReport, EpochSetup, Epochs};
pub(crate) use running_table::RUNNING;
pub use running_table::{RUNNING_CHARGES, running_spec};
pub use state::{EngineState, OpenWindow, TableVersions, Tracked};
pub use tables::{lake_tables, table_specs};
pub use unrated::{EventExample, PlaceText, Unknown, UnratedEvent, UnratedGroup, UnratedQuestion, UnratedReport, WindowBooks};

//! The words that every other crate of Ratemill speaks: what a usage event, a charge and a rejected record look
//! like in Arrow, how decimals are read and rounded, where a window begins and ends, and what makes two events
//! the same event.
//!
//! Nothing here does I/O and nothing here knows `DataFusion`.
#![warn(missing_docs)]

pub mod adopted;
mod billing_periods;
pub mod changes;
pub mod charges;
pub mod decimal;
pub mod exact_text;
pub mod files;
pub mod identity;
pub mod invoicing;
pub mod money;
pub mod nearest;
pub mod rejected;
pub mod time;
pub mod usage;
pub mod windows;

pub use adopted::{AdoptedColumns, AdoptedFile};
pub use billing_periods::{BillingPeriod, BillingPeriods, ContractTerms, MovedSubject};
pub use decimal::{Decimal, DecimalError};
pub use identity::{EventHasher, EventKey, Verdict};
pub use money::{Currency, Rounding};
pub use rejected::{Reason, Rejection};
pub use usage::{UsageBatch, UsageBatchBuilder, UsageEvent, UsageSchema};
pub use windows::{Window, WindowSpec};

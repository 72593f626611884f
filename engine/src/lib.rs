//! The engine of Ratemill and its command line.
//!
//! The way of a usage event: a connector decodes it → [`capture`] asks [`dedup`] and appends it to the [`log`], then
//! its sender is answered → an [`epoch`] moves it into the `usage` table of the [`lake`], evaluates the windows that
//! are due or late with the rules, and appends the difference to what was published to the [`ledger`] → [`query`]
//! reads charges and invoice lines as of the last completed epoch.
#![warn(missing_docs)]

pub mod adopted;
pub mod api;
pub mod capture;
pub mod cli;
pub mod config;
pub mod dedup;
pub mod epoch;
pub mod failpoint;
pub mod installation;
pub mod lake;
pub mod ledger;
pub mod live;
pub mod log;
pub mod pipeline;
pub mod pulse;
pub mod query;
pub mod status;
pub mod tap;
pub mod upkeep;

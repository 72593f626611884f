//! Pricing rules: SQL that a billing analyst writes for one window, checked before anything runs and evaluated over
//! windows with exact decimals.
//!
//! This crate knows neither where usage comes from nor where charges go: it is given a table of usage and returns
//! Arrow batches of charges.
#![warn(missing_docs)]

mod as_of;
mod check;
pub mod diagnostics;
mod dialect;
pub mod evaluate;
pub mod explain;
pub mod fold;
pub mod functions;
mod guards;
mod inputs;
mod lift;
mod limits;
mod memory_pool;
mod opaque;
mod options;
mod plain;
mod planning;
mod pricing;
mod project;
pub mod reference;
mod rule;
pub mod rule_tests;
pub mod session;
mod source;
mod statement;
mod tree;
pub mod unrated;
mod window_set;

pub use diagnostics::{Diagnostic, Diagnostics};
pub use evaluate::{Blame, Evaluator, Mode, RateError, WindowCharges};
pub use fold::{CheckpointError, Fold, FoldState, Forgotten, NotFoldable, OpenWindows, RunningCharges};
pub use opaque::OpaqueTable;
pub use project::RuleProject;
pub use reference::{ReferenceData, ReferenceTable};
pub use rule::{OutputColumn, Reach, Rule, RuleOptions, RuleWindow};
pub use unrated::{Claims, NotAnalysed};

//! Conformance: cases with expected figures from elsewhere, priced by rules as an analyst would write them.
//!
//! `tests/conformance/MODEL.sql` is the rule of a model and `MODEL.toml` its mapping: how a case becomes reference
//! tables and usage. Each case is a project of its own, checked and evaluated as any other.

mod case;
mod compare;
mod disputed;
mod mapping;
mod path;
pub mod report;
pub mod run;
mod tables;

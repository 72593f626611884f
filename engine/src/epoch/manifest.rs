//! Manifests and completion records: `epochs/N.manifest.json` and `epochs/N.done.json`.

use ratemill_rules::RuleWindow;
use serde::{Deserialize, Serialize};

use super::periods::ClosedPeriod;
use super::state::{EngineState, TableVersions};
use crate::lake::{Lake, LakeError};

/// A window that an epoch evaluates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowTask {
    /// The rule.
    pub rule: String,
    /// The rule's version.
    pub rule_version: String,
    /// The reference version.
    pub reference_version: String,
    /// The window.
    pub window: RuleWindow,
    /// Why: `window closed`, `late usage`, `void or amendment`, `re-rate`, `unrated usage mended`, or why a pending change was applied.
    pub cause: String,
}

impl WindowTask {
    /// The cause of windows that are published for the first time.
    pub(super) const CLOSED: &'static str = "window closed";
    /// The cause of windows that voids and amendments correct.
    pub(super) const CHANGED: &'static str = "void or amendment";
    /// The cause of windows whose unrated usage is rated by now.
    pub(super) const MENDED: &'static str = "unrated usage mended";

    /// Whether it corrects a published window because of what arrived, usage or what rates it, with nobody asking: where it
    /// fails, it is tried again.
    pub(super) fn is_late(&self) -> bool {
        ["late usage", Self::CHANGED, Self::MENDED].contains(&self.cause.as_str())
    }
}

/// What an epoch will do, fixed before it does anything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// Its number, from 1.
    pub epoch: i64,
    /// Generation of the owner.
    pub generation: u64,
    /// The log.
    pub log_id: String,
    /// First position.
    pub from: i64,
    /// Position after the last.
    pub to: i64,
    /// The clock, read once, µs UTC.
    pub clock: i64,
    /// Time after which a silent input holds nothing back, µs.
    pub idle: i64,
    /// Version of the pricing functions.
    pub functions: String,
    /// Version of the reference data.
    pub reference_version: String,
    /// Version of each rule that is in the project, by name and start of force.
    pub rules: Vec<(String, String)>,
    /// Windows to evaluate.
    pub tasks: Vec<WindowTask>,
    /// Windows with usage that stay open.
    pub state: EngineState,
    /// The invoicing month that the epoch closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closing: Option<ClosedPeriod>,
}

/// What an epoch did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Completion {
    /// Its number.
    pub epoch: i64,
    /// When it ended, µs UTC.
    pub completed_at: i64,
    /// The tables as readers see them now.
    pub versions: TableVersions,
    /// The state that the next epoch begins with.
    pub state: EngineState,
}

pub(super) fn manifest_name(epoch: i64) -> String {
    format!("epochs/{epoch:012}.manifest.json")
}

pub(super) fn completion_name(epoch: i64) -> String {
    format!("epochs/{epoch:012}.done.json")
}

/// The last completion record, if there is one.
///
/// # Errors
/// [`LakeError`] when it cannot be read.
pub async fn latest_completion(lake: &Lake) -> Result<Option<Completion>, LakeError> {
    let names = lake.names("epochs").await?;
    match names.iter().rev().find(|name| name.ends_with(".done.json")) {
        Some(name) => read(lake, &format!("epochs/{name}")).await,
        None => Ok(None),
    }
}

pub(super) async fn read<T: serde::de::DeserializeOwned>(lake: &Lake, name: &str) -> Result<Option<T>, LakeError> {
    match lake.read(name).await? {
        Some(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| LakeError::File { path: name.to_owned(), message: error.to_string() })
        }
        None => Ok(None),
    }
}

pub(super) fn encode<T: Serialize>(name: &str, value: &T) -> Result<Vec<u8>, LakeError> {
    serde_json::to_vec(value).map_err(|error| LakeError::File { path: name.to_owned(), message: error.to_string() })
}

//! Checkpoints of folded windows: `checkpoints/POSITION/RULE-VERSION.fold`, and `checkpoints/POSITION.json`, which says
//! what belongs together and is written last. They only save reading usage again: whatever is missing, damaged or of
//! another version is made anew from the `usage` table.

use ratemill_rules::FoldState;
use ratemill_schemas::Window;
use serde::{Deserialize, Serialize};

use super::folds::Folds;
use super::manifest::{encode, read};
use super::run::EpochError;
use super::state::EngineState;
use crate::failpoint::Failpoint;
use crate::lake::Lake;

/// Changes when older checkpoints cannot be read any more.
const FORMAT: u32 = 1;

/// Checkpoints that are kept.
const KEPT: usize = 2;

/// What a checkpoint holds.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    format: u32,
    /// Position of the log up to which usage is in it.
    position: i64,
    rules: Vec<Entry>,
}

/// One rule of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    rule: String,
    rule_version: String,
    fresh_from: i64,
    /// Open windows, and whether all of their usage is in the state.
    known: Vec<(Window, bool)>,
}

fn index_name(position: i64) -> String {
    format!("checkpoints/{position:020}.json")
}

fn state_name(position: i64, rule: &str, version: &str) -> String {
    format!("checkpoints/{position:020}/{rule}-{version}.fold")
}

/// Keeps the newest checkpoints.
async fn remove_older(lake: &Lake) -> Result<(), EpochError> {
    let names = positions(lake).await?;
    for name in names.iter().rev().skip(KEPT) {
        // Without its index, the rest is no checkpoint.
        lake.remove(&format!("checkpoints/{name}.json")).await?;
        Failpoint::CheckpointIndexRemoved.reached();
        for state in lake.names(&format!("checkpoints/{name}")).await? {
            lake.remove(&format!("checkpoints/{name}/{state}")).await?;
        }
    }
    Ok(())
}

/// Positions of the checkpoints as they are named, the oldest first.
async fn positions(lake: &Lake) -> Result<Vec<String>, EpochError> {
    let mut names = lake.names("checkpoints").await?;
    names.sort_unstable();
    Ok(names.iter().filter_map(|name| name.strip_suffix(".json")).map(str::to_owned).collect())
}

impl Folds {
    /// Keeps the state in the lake.
    pub(super) async fn save(&self, lake: &Lake) -> Result<(), EpochError> {
        if self.rules.is_empty() {
            return Ok(());
        }
        let mut rules = Vec::new();
        for fold in self.rules.iter().filter(|fold| !fold.is_given_up && fold.opens) {
            let rule = fold.fold.rule();
            let bytes = match fold.state.encode() {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::warn!(%error, rule = rule.name, "no checkpoint of this rule");
                    continue;
                }
            };
            lake.replace(&state_name(self.position, &rule.name, &rule.version), bytes).await?;
            Failpoint::CheckpointStateWritten.reached();
            rules.push(Entry {
                rule: rule.name.clone(),
                rule_version: rule.version.clone(),
                fresh_from: fold.fresh_from,
                known: fold.known.iter().map(|(window, held)| (*window, *held)).collect(),
            });
        }
        let name = index_name(self.position);
        let index = encode(&name, &Index { format: FORMAT, position: self.position, rules })?;
        lake.replace(&name, index).await?;
        Failpoint::CheckpointIndexWritten.reached();
        remove_older(lake).await?;
        metrics::counter!("ratemill_checkpoints_total").increment(1);
        Ok(())
    }

    /// Loads the newest checkpoint that fits `state`; returns the position that it reaches, 0 without one.
    pub(super) async fn load(&mut self, lake: &Lake, state: &EngineState) -> Result<i64, EpochError> {
        for name in positions(lake).await?.iter().rev() {
            let index = match read::<Index>(lake, &format!("checkpoints/{name}.json")).await {
                Ok(Some(index)) if index.format == FORMAT && index.position <= state.position => index,
                Ok(_) => continue,
                Err(error) => {
                    tracing::warn!(%error, "this checkpoint is passed over");
                    continue;
                }
            };
            for fold in &mut self.rules {
                let rule = fold.fold.rule();
                // A version that was away for some time has another start.
                let tracked_from = fold.tracked_from(state);
                let is_same =
                    |entry: &&Entry| entry.rule == rule.name && entry.rule_version == rule.version && entry.fresh_from == tracked_from;
                let Some(entry) = index.rules.iter().find(is_same) else { continue };
                let Some(bytes) = lake.read(&state_name(index.position, &rule.name, &rule.version)).await? else { continue };
                match FoldState::decode(&fold.fold, &bytes) {
                    Ok(loaded) => {
                        fold.state = loaded;
                        fold.known = entry.known.iter().copied().collect();
                        fold.is_loaded = true;
                    }
                    Err(error) => tracing::warn!(%error, rule = rule.name, "the usage of open windows is read again"),
                }
            }
            if self.rules.iter().any(|fold| fold.is_loaded) {
                return Ok(index.position);
            }
        }
        Ok(0)
    }
}

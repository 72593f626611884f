//! Small files of the lake that nobody reads any more: manifests and completion records of old epochs that published
//! nothing, parts of checkpoints that were never finished. The record of an epoch that published charges explains them, and
//! stays.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::lake::{Lake, LakeError};

/// Latest epochs that stay, whatever their age.
const EPOCHS_MIN: i64 = 100;
/// Age at which a part of a checkpoint is one of none that is being written, µs.
const ABANDONED: i64 = 86_400_000_000;

/// Epochs that are looked at in one round.
const EPOCHS_AT_ONCE: usize = 4096;
/// Where it is noted up to which epoch all were looked at.
const LOOKED_AT: &str = "upkeep/epochs.json";

/// Up to which epoch all were looked at: those that are still there stay.
#[derive(Debug, Default, Serialize, Deserialize)]
struct LookedAt {
    epoch: i64,
}

/// What tells whether an epoch did more than store usage.
#[derive(Debug, Deserialize)]
struct Planned {
    tasks: Vec<IgnoredAny>,
    #[serde(default)]
    closing: Option<IgnoredAny>,
}

/// Old epochs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OldEpochs {
    /// Files of those that published nothing; the oldest first.
    pub(super) files: Vec<String>,
    /// The last that was looked at.
    to: i64,
}

impl OldEpochs {
    /// Epochs before the latest whose files were last written before `before`, µs UTC.
    pub(super) async fn find(lake: &Lake, latest: i64, before: i64) -> Result<Self, LakeError> {
        let looked_at = lake.read(LOOKED_AT).await?.and_then(|bytes| serde_json::from_slice::<LookedAt>(&bytes).ok()).unwrap_or_default();
        let mut epochs: BTreeMap<i64, Vec<(String, i64)>> = BTreeMap::new();
        for (path, written_at) in lake.files_below("epochs").await? {
            let epoch = epoch_of(&path).filter(|epoch| looked_at.epoch < *epoch && *epoch <= latest - EPOCHS_MIN);
            if let Some(epoch) = epoch {
                epochs.entry(epoch).or_default().push((path, written_at));
            }
        }
        let mut old = Self { files: Vec::new(), to: looked_at.epoch };
        for (epoch, files) in epochs.into_iter().take(EPOCHS_AT_ONCE) {
            if files.iter().any(|(_, written_at)| *written_at >= before) {
                break;
            }
            old.to = epoch;
            let manifest = lake.read(&format!("epochs/{epoch:012}.manifest.json")).await?;
            // One that cannot be read is left for somebody to look at; one that is gone was being removed.
            let published_nothing = manifest.is_none_or(|manifest| {
                serde_json::from_slice::<Planned>(&manifest).is_ok_and(|planned| planned.tasks.is_empty() && planned.closing.is_none())
            });
            if published_nothing {
                // The manifest goes last: it tells what becomes of the other.
                let mut names: Vec<String> = files.into_iter().map(|(path, _)| path).collect();
                names.sort_unstable();
                old.files.append(&mut names);
            }
        }
        Ok(old)
    }

    /// Removes them.
    pub(super) async fn remove(&self, lake: &Lake) -> Result<(), LakeError> {
        let (manifests, rest): (Vec<String>, Vec<String>) = self.files.iter().cloned().partition(|name| name.ends_with(".manifest.json"));
        lake.remove_all(&rest).await?;
        lake.remove_all(&manifests).await?;
        let looked_at = serde_json::to_vec(&LookedAt { epoch: self.to });
        let note = looked_at.map_err(|error| LakeError::File { path: LOOKED_AT.to_owned(), message: error.to_string() })?;
        lake.replace(LOOKED_AT, note).await
    }
}

fn epoch_of(path: &str) -> Option<i64> {
    path.strip_prefix("epochs/")?.split_once('.')?.0.parse().ok()
}

/// States of open windows below `checkpoints/` that no index names.
pub(super) async fn abandoned_checkpoints(lake: &Lake, clock: i64) -> Result<Vec<String>, LakeError> {
    let files = lake.files_below("checkpoints").await?;
    let whole: BTreeSet<&str> = files.iter().filter_map(|(path, _)| path.strip_suffix(".json")).collect();
    let is_abandoned = |(path, written_at): &&(String, i64)| {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        path.ends_with(".fold") && !whole.contains(folder) && *written_at < clock.saturating_sub(ABANDONED)
    };
    Ok(files.iter().filter(is_abandoned).map(|(path, _)| path.clone()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn epochs_that_published_something_the_latest_and_young_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::open("lake", folder.path()).unwrap();
        let manifest = |epoch: i64| match epoch {
            2 => r#"{"tasks": [{"rule": "r"}]}"#,
            4 => r#"{"tasks": [], "closing": {"period": "2026-06"}}"#,
            5 => "torn",
            _ => r#"{"tasks": []}"#,
        };
        for epoch in 1..=107 {
            lake.create(&format!("epochs/{epoch:012}.done.json"), b"{}".to_vec()).await.unwrap();
            lake.create(&format!("epochs/{epoch:012}.manifest.json"), manifest(epoch).into()).await.unwrap();
        }
        // A removal was interrupted.
        lake.remove("epochs/000000000001.manifest.json").await.unwrap();
        assert_eq!(OldEpochs::find(&lake, 107, 0).await.unwrap(), OldEpochs::default());
        let old = OldEpochs::find(&lake, 107, i64::MAX).await.unwrap();
        let of = |epoch: i64| ["done", "manifest"].map(|kind| format!("epochs/{epoch:012}.{kind}.json"));
        assert_eq!(old.files, [vec![of(1)[0].clone()], of(3).to_vec(), of(6).to_vec(), of(7).to_vec()].concat());
        old.remove(&lake).await.unwrap();
        // Once more: what is gone is no error.
        old.remove(&lake).await.unwrap();
        let names = lake.names("epochs").await.unwrap();
        assert_eq!(names.len(), 206);
        assert_eq!(names[..2], ["000000000002.done.json", "000000000002.manifest.json"]);
        // What was looked at and stays is not read again.
        lake.replace("epochs/000000000002.manifest.json", b"{\"tasks\": []}".to_vec()).await.unwrap();
        assert_eq!(OldEpochs::find(&lake, 107, i64::MAX).await.unwrap().files, Vec::<String>::new());
        assert_eq!(OldEpochs::find(&lake, 108, i64::MAX).await.unwrap().files, of(8));
    }

    #[tokio::test]
    async fn only_parts_of_no_checkpoint_are_abandoned() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::open("lake", folder.path()).unwrap();
        for name in ["checkpoints/01/a.fold", "checkpoints/02/a.fold", "checkpoints/02.json"] {
            lake.create(name, b"{}".to_vec()).await.unwrap();
        }
        assert_eq!(abandoned_checkpoints(&lake, i64::MAX).await.unwrap(), ["checkpoints/01/a.fold"]);
        assert!(abandoned_checkpoints(&lake, ratemill_schemas::time::now()).await.unwrap().is_empty());
    }
}

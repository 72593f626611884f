//! Small files of the lake that nobody reads any more: old manifests and completion records, parts of checkpoints that
//! were never finished.

use std::collections::BTreeSet;

use crate::lake::{Lake, LakeError};

/// Latest epochs that stay, whatever their age.
const EPOCHS_MIN: i64 = 100;
/// Age at which a part of a checkpoint is one of none that is being written, µs.
const ABANDONED: i64 = 86_400_000_000;

/// Files below `epochs/` of epochs before the latest, last written before `before`, µs UTC; the oldest first.
pub(super) async fn old_epochs(lake: &Lake, latest: i64, before: i64) -> Result<Vec<String>, LakeError> {
    let mut old = lake.files_below("epochs").await?;
    old.retain(|(path, written_at)| *written_at < before && epoch_of(path).is_some_and(|epoch| epoch <= latest - EPOCHS_MIN));
    let mut names: Vec<String> = old.into_iter().map(|(path, _)| path).collect();
    names.sort_unstable();
    Ok(names)
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
    async fn the_latest_epochs_and_young_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::open("lake", folder.path()).unwrap();
        for epoch in 1..=103 {
            for kind in ["manifest", "done"] {
                lake.create(&format!("epochs/{epoch:012}.{kind}.json"), b"{}".to_vec()).await.unwrap();
            }
        }
        assert!(old_epochs(&lake, 103, 0).await.unwrap().is_empty());
        let old = old_epochs(&lake, 103, i64::MAX).await.unwrap();
        assert_eq!(old.len(), 6);
        assert_eq!(old[0], "epochs/000000000001.done.json");
        lake.remove_all(&old).await.unwrap();
        // Once more: what is gone is no error.
        lake.remove_all(&old).await.unwrap();
        assert_eq!(lake.names("epochs").await.unwrap().len(), 200);
        assert!(old_epochs(&lake, 103, i64::MAX).await.unwrap().is_empty());
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

//! What upkeep needs of the owner of the tables.

use std::path::Path;
use std::sync::Arc;

use datafusion::execution::runtime_env::RuntimeEnv;
use ratemill_rules::session::SessionLimits;
use tokio::sync::RwLock;

use super::run::{EpochError, Epochs};
use super::tables::Tables;
use crate::lake::{Lake, LakeTable, TableChange};

impl Tables {
    /// Each of them.
    pub(super) fn each_mut(&mut self) -> [&mut LakeTable; 6] {
        let Self { usage, rejected, files, charges, changes, adopted } = self;
        [usage, rejected, files, charges, changes, adopted]
    }
}

impl Epochs {
    /// The tables as they are now, to be read beside the epochs.
    #[must_use]
    pub fn upkeep_tables(&self) -> Vec<LakeTable> {
        let tables = &self.tables;
        let each = [&tables.usage, &tables.rejected, &tables.files, &tables.charges, &tables.changes, &tables.adopted, &self.running.table];
        each.into_iter().cloned().collect()
    }

    /// The lake, and what its tables are read with.
    #[must_use]
    pub fn reading(&self) -> (Lake, Arc<RuntimeEnv>, SessionLimits) {
        (self.lake.clone(), Arc::clone(&self.runtime), self.limits.clone())
    }

    /// The folder of the log.
    #[must_use]
    pub fn log_folder(&self) -> &Path {
        &self.log_folder
    }

    /// Held by whoever adopts a file, from before it is kept until the log names it: files that nobody names are removed
    /// while nobody holds it.
    #[must_use]
    pub fn adopting(&self) -> Arc<RwLock<()>> {
        Arc::clone(&self.adopting)
    }

    /// Commits a change of upkeep between two epochs; `false` when it is not the time for it, or there is nothing to change
    /// any more.
    ///
    /// # Errors
    /// [`EpochError::Lake`].
    pub async fn commit_upkeep(&mut self, table: &str, change: TableChange) -> Result<bool, EpochError> {
        // An epoch that failed goes on with the tables as it left them.
        if self.unfinished.is_some() {
            return Ok(false);
        }
        let Self { tables, running, ownership, .. } = self;
        let mut each = tables.each_mut().into_iter().chain([&mut running.table]);
        let Some(table) = each.find(|known| known.name() == table) else { return Ok(false) };
        // Who takes the lake over after the check writes to the version that this commit is for.
        table.refresh().await?;
        ownership.check().await?;
        Ok(table.commit_upkeep(change).await?)
    }
}

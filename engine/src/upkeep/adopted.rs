//! Files below `adopted_files/` that became no usage: a row was not good, all rows were there before, the log was full, or
//! the process died first.

use std::collections::BTreeSet;
use std::path::Path;

use datafusion::prelude::SessionContext;
use ratemill_schemas::AdoptedFile;

use crate::adopted::Adopted;
use crate::lake::{Lake, LakeError, LakeTable};
use crate::log;

/// Age at which a file is one of nobody, µs.
const ABANDONED: i64 = 86_400_000_000;

/// Old files that neither the log nor the table `adopted` names. Whoever adopts files must not be at it: a file that is there
/// already is not written again, but named by the log a moment later.
pub(super) async fn unnamed_files(
    lake: &Lake,
    mut table: LakeTable,
    log_folder: &Path,
    context: &SessionContext,
    clock: i64,
) -> Result<Vec<String>, LakeError> {
    let mut files = lake.files_below("adopted_files").await?;
    files.retain(|(_, written_at)| *written_at < clock.saturating_sub(ABANDONED));
    if files.is_empty() || !log_folder.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |message: String| LakeError::File { path: "adopted_files".to_owned(), message };
    // The log first: what an epoch trims from there meanwhile is in the table by then.
    let mut named: BTreeSet<String> =
        log::adopted_files(log_folder).map_err(|error| failed(error.to_string()))?.iter().map(|hash| AdoptedFile::path(hash)).collect();
    table.refresh().await?;
    let adopted = Adopted::load(context, lake, &table).await.map_err(|error| failed(error.to_string()))?;
    named.extend(adopted.content_hashes().map(AdoptedFile::path));
    Ok(files.into_iter().map(|(path, _)| path).filter(|path| !named.contains(path)).collect())
}

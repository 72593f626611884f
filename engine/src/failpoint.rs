//! Points at which a test lets the process die, one at every step of capture and of an epoch.
//!
//! `RATEMILL_FAIL_AT=epoch.manifest-written:2` aborts the process when it comes to that point for the second time;
//! `epoch.manifest-written:2:FILE` makes it wait there until `FILE` exists, and `list` prints every point. Only builds
//! with debug assertions, which the tests run, have any of it: a release build asks nothing and does nothing. A crate
//! feature would cost a second build of the whole program for the same.

macro_rules! failpoints {
    ($($(#[doc = $doc:literal])* $point:ident = $name:literal,)*) => {
        /// A step after which the process may die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Failpoint {
            $($(#[doc = $doc])* $point,)*
        }

        #[cfg(debug_assertions)]
        impl Failpoint {
            /// Every point with its name.
            const ALL: &[(Self, &str)] = &[$((Self::$point, $name)),*];
        }
    };
}

failpoints! {
    /// A segment of the usage log has its name; neither is synced.
    LogSegmentOpened = "log.segment-opened",
    /// A frame is to be written.
    LogBeforeWrite = "log.before-write",
    /// The first half of a frame is written.
    LogHalfWritten = "log.half-written",
    /// A frame is written, not synced.
    LogWritten = "log.written",
    /// A frame is synced.
    LogSynced = "log.synced",
    /// A segment that the lake has all of is unlinked.
    LogUnlinked = "log.unlinked",
    /// What was submitted is durable and not answered.
    CaptureBeforeAnswer = "capture.before-answer",
    /// It is answered.
    CaptureAnswered = "capture.answered",
    /// A new file of the local lake has its content and no name.
    StoreWrittenAside = "store.written-aside",
    /// It has its name, which is not synced.
    StoreNamed = "store.named",
    /// A table was created.
    TableCreated = "table.created",
    /// The Parquet files of a commit are written.
    TableFilesWritten = "table.files-written",
    /// The commit is written and not read back.
    TableCommitted = "table.committed",
    /// The generation to be claimed is noted beside the log.
    OwnerNoted = "owner.noted",
    /// The lake is claimed, without a lease.
    OwnerClaimed = "owner.claimed",
    /// The lease is written.
    OwnerLeased = "owner.leased",
    /// The lease is renewed.
    OwnerRenewed = "owner.renewed",
    /// The lake is given up.
    OwnerReleased = "owner.released",
    /// The new generation is known to every table.
    TablesFenced = "tables.fenced",
    /// Rules and reference data are kept in the lake.
    VersionsKept = "versions.kept",
    /// An epoch is planned; nothing is written.
    EpochPlanned = "epoch.planned",
    /// Its manifest is written.
    EpochManifestWritten = "epoch.manifest-written",
    /// Usage is appended.
    EpochUsageAppended = "epoch.usage-appended",
    /// Rejected records are appended.
    EpochRejectedAppended = "epoch.rejected-appended",
    /// Voids and amendments are appended.
    EpochChangesAppended = "epoch.changes-appended",
    /// Claims on files are appended.
    EpochFilesAppended = "epoch.files-appended",
    /// Usage is folded into open windows.
    EpochFolded = "epoch.folded",
    /// Windows are rated; no charge is written.
    EpochRated = "epoch.rated",
    /// Charges are appended.
    EpochChargesAppended = "epoch.charges-appended",
    /// The completion record is to be written.
    EpochBeforeCompletion = "epoch.before-completion",
    /// The completion record is written.
    EpochCompleted = "epoch.completed",
    /// The event ids of the epoch are kept.
    EpochKeysSaved = "epoch.keys-saved",
    /// The log is trimmed.
    EpochTrimmed = "epoch.trimmed",
    /// A file of event ids is written and has no name.
    DedupFileWritten = "dedup.file-written",
    /// It has its name.
    DedupFileNamed = "dedup.file-named",
    /// The state of one rule is in a checkpoint that has no index.
    CheckpointStateWritten = "checkpoint.state-written",
    /// The index of a checkpoint is written.
    CheckpointIndexWritten = "checkpoint.index-written",
    /// The index of an old checkpoint is removed, its states are not.
    CheckpointIndexRemoved = "checkpoint.index-removed",
    /// A month may be closed; nothing is written.
    PeriodChecked = "period.checked",
    /// The epoch that closes it has its manifest.
    PeriodManifestWritten = "period.manifest-written",
    /// It is closed.
    PeriodClosed = "period.closed",
}

impl Failpoint {
    /// Dies or waits here if a test asked for it.
    #[inline(always)]
    pub fn reached(self) {
        #[cfg(debug_assertions)]
        armed::reached(self);
    }
}

/// Reads what a test asked for; prints the list and ends the process if it asked for that.
pub(crate) fn arm() {
    #[cfg(debug_assertions)]
    armed::arm();
}

#[cfg(debug_assertions)]
mod armed {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::Failpoint;

    static ARMED: OnceLock<Armed> = OnceLock::new();

    struct Armed {
        point: Failpoint,
        /// Times that the point is still to be passed, this one included.
        left: AtomicU64,
        /// Where the process waits for this file instead of dying.
        until: Option<PathBuf>,
    }

    pub(super) fn arm() {
        let Ok(text) = std::env::var("RATEMILL_FAIL_AT") else { return };
        if text == "list" {
            Failpoint::ALL.iter().for_each(|(_, name)| println!("{name}"));
            std::process::exit(0);
        }
        let mut parts = text.splitn(3, ':');
        let name = parts.next().unwrap_or_default();
        let count = parts.next().map_or(Ok(1), str::parse);
        let point = Failpoint::ALL.iter().find(|(_, known)| *known == name);
        let (Some((point, _)), Ok(count)) = (point, count) else {
            eprintln!("error: RATEMILL_FAIL_AT={text} is no failpoint; RATEMILL_FAIL_AT=list prints them");
            std::process::exit(2);
        };
        let armed = Armed { point: *point, left: AtomicU64::new(count), until: parts.next().map(PathBuf::from) };
        // Nothing can have armed it before: this is the first thing that the program does.
        let _ = ARMED.set(armed);
    }

    pub(super) fn reached(point: Failpoint) {
        let Some(armed) = ARMED.get() else { return };
        if armed.point != point || armed.left.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        match &armed.until {
            None => {
                eprintln!("failpoint {point:?}");
                std::process::abort()
            }
            Some(file) => {
                eprintln!("waiting at failpoint {point:?}");
                while !file.exists() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }
}

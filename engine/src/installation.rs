//! The log folder of one installation: its lock, its name, and the key under which event ids are hashed.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use ratemill_schemas::EventHasher;
use serde::{Deserialize, Serialize};

use crate::log::{LogError, create_folder, sync_folder};

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    log_id: String,
    hash_key: [u64; 2],
}

/// A locked log folder.
#[derive(Debug)]
pub struct Installation {
    folder: PathBuf,
    identity: Identity,
    /// Held as long as the process lives; the system lets go of it, however the process ends.
    _lock: File,
}

impl Installation {
    /// Locks the folder, which is made where it is not there.
    ///
    /// # Errors
    /// [`LogError::Locked`] when another process has it, [`LogError::Io`].
    pub fn open(folder: &Path) -> Result<Self, LogError> {
        let io = |error| LogError::io(folder, error);
        create_folder(folder).map_err(io)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("LOCK")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(LogError::Locked { path: folder.to_owned() }),
            Err(std::fs::TryLockError::Error(error)) => return Err(io(error)),
        }
        let path = folder.join("identity.json");
        let identity = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| LogError::io(&path, error.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(folder, &path).map_err(io)?,
            Err(error) => return Err(LogError::io(&path, error)),
        };
        Ok(Self { folder: folder.to_owned(), identity, _lock: lock })
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the dedup index keeps its files.
    #[must_use]
    pub fn dedup_folder(&self) -> PathBuf {
        self.folder.join("dedup")
    }

    /// The name of this log.
    #[must_use]
    pub fn log_id(&self) -> &str {
        &self.identity.log_id
    }

    /// The generation of the lake that this log last claimed, 0 for none.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn generation(&self) -> Result<u64, LogError> {
        let path = self.folder.join("generation");
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|_| LogError::io(&path, std::io::ErrorKind::InvalidData.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(LogError::io(&path, error)),
        }
    }

    /// Notes the generation that is about to be claimed.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn note_generation(&self, generation: u64) -> Result<(), LogError> {
        let path = self.folder.join("generation");
        write_synced(&self.folder, &path, generation.to_string().as_bytes()).map_err(|error| LogError::io(&path, error))
    }

    /// Hashes event ids under this installation's key.
    #[must_use]
    pub fn hasher(&self) -> EventHasher {
        EventHasher::new(self.identity.hash_key)
    }
}

fn create(folder: &Path, path: &Path) -> std::io::Result<Identity> {
    let identity = Identity { log_id: format!("{:016x}", rand::random::<u64>()), hash_key: [rand::random(), rand::random()] };
    write_synced(folder, path, &serde_json::to_vec(&identity)?)?;
    Ok(identity)
}

fn write_synced(folder: &Path, path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(folder)
}

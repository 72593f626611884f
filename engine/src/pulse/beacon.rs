//! `engine.json` in the log folder: the status of the engine that runs there, written every second while it does. So
//! `ratemill status` needs no listener and no key.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ratemill_schemas::time::{now, parse_instant};

use super::{LiveStatus, Vitals};

/// How often the file is written.
const PERIOD: Duration = Duration::from_secs(1);
/// A file that is older is of an engine that is gone, or hangs, µs.
const STALE: i64 = 15_000_000;

/// Writes the status until it is dropped; then the file goes away.
#[derive(Debug)]
pub struct Beacon {
    path: PathBuf,
    tell: Option<Sender<()>>,
    writer: Option<JoinHandle<()>>,
}

/// What is known of the engine of a log folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// None runs.
    None,
    /// It runs.
    Running(Box<LiveStatus>),
    /// It ended, or hangs: this is the last that it said.
    Gone(Box<LiveStatus>),
}

fn path_in(log: &Path) -> PathBuf {
    log.join("engine.json")
}

impl Beacon {
    /// Starts to write into the log folder, and to set gauges.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(log: &Path, vitals: Vitals) -> std::io::Result<Self> {
        let path = path_in(log);
        let (tell, told) = channel();
        let file = path.clone();
        let writer = std::thread::Builder::new().name("beacon".to_owned()).spawn(move || {
            loop {
                let status = vitals.status();
                vitals.set_gauges(&status);
                // On a full disk there is no status; nothing depends on it.
                if let Err(error) = write(&file, &status) {
                    tracing::debug!(%error, "no status in the log folder");
                }
                if told.recv_timeout(PERIOD) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        })?;
        Ok(Self { path, tell: Some(tell), writer: Some(writer) })
    }

    /// Has it written at once, not with the next second.
    pub fn write_now(&self) {
        // The thread lives as long as this.
        let _ = self.tell.as_ref().map(|tell| tell.send(()));
    }
}

impl Drop for Beacon {
    fn drop(&mut self) {
        self.tell = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Readers see the old file or the new one, whole.
fn write(path: &Path, status: &LiveStatus) -> std::io::Result<()> {
    let temporary = path.with_extension("json.tmp");
    std::fs::write(&temporary, serde_json::to_vec(status)?)?;
    std::fs::rename(temporary, path)
}

/// The engine that runs in a log folder, as it says.
#[must_use]
pub fn find(log: &Path) -> Found {
    let said = std::fs::read(path_in(log)).ok().and_then(|bytes| serde_json::from_slice::<LiveStatus>(&bytes).ok());
    let Some(said) = said else { return Found::None };
    let age = parse_instant(&said.written_at).map_or(i64::MAX, |written| now().saturating_sub(written));
    if age < STALE && is_alive(said.pid) { Found::Running(Box::new(said)) } else { Found::Gone(Box::new(said)) }
}

/// The URL of the engine that runs in a log folder and holds `generation` of the lake; `None` where there is none, or it has no
/// listener.
#[must_use]
pub fn engine_url(log: &Path, generation: u64) -> Option<String> {
    let Found::Running(status) = find(log) else { return None };
    let mut address: SocketAddr = status.http.filter(|_| status.generation == generation)?.parse().ok()?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    Some(format!("http://{address}"))
}

/// Whether a process is there, where that can be seen; else the age of the file has to do.
fn is_alive(pid: u32) -> bool {
    let processes = Path::new("/proc/self");
    !processes.exists() || Path::new(&format!("/proc/{pid}")).exists()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use ratemill_connectors::Intake;
    use ratemill_schemas::time::format_instant;

    use super::*;
    use crate::capture::CaptureProgress;

    #[test]
    fn a_file_tells_of_the_engine_that_writes_it_and_of_no_other() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path()), Found::None);
        let (intake, _queue) = Intake::bounded(1000);
        let vitals = Vitals::new(Arc::new(CaptureProgress::default()), intake.room(), 5);
        write(&path_in(folder.path()), &vitals.status()).unwrap();
        assert!(matches!(find(folder.path()), Found::Running(said) if said.queue.capacity_bytes == 1000 && said.log.quota_bytes == 5));
        let mut other = LiveStatus { pid: u32::MAX, ..vitals.status() };
        write(&path_in(folder.path()), &other).unwrap();
        assert!(matches!(find(folder.path()), Found::Gone(_)));
        other = LiveStatus { written_at: format_instant(now() - STALE - 1), ..vitals.status() };
        write(&path_in(folder.path()), &other).unwrap();
        assert!(matches!(find(folder.path()), Found::Gone(_)));
        let beacon = Beacon::start(folder.path(), vitals).unwrap();
        drop(beacon);
        assert_eq!(find(folder.path()), Found::None);
    }
}

//! One owner per lake: generations under `owner/`, each claimed by put-if-absent, and a lease beside each.

use std::time::Duration;

use ratemill_schemas::time::{format_instant, now};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Lake, LakeError};
use crate::failpoint::Failpoint;
use crate::installation::Installation;
use crate::log;

/// How long a lease counts where it does not say so itself, µs.
const LEASE: i64 = 60_000_000;
/// A lease is renewed so many times before it would run out.
const RENEWALS: u64 = 4;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    generation: u64,
    log_id: String,
    host: String,
    pid: u32,
    claimed_at: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Lease {
    renewed_at: i64,
    /// How long it counts from then on, µs.
    #[serde(default = "lasts")]
    lasts: i64,
    /// The owner went away and left nothing in its log.
    drained: bool,
    /// The owner went away.
    released: bool,
}

fn lasts() -> i64 {
    LEASE
}

/// Who holds a lake, or held it last.
#[derive(Debug, Clone, Serialize)]
pub struct Holder {
    /// The generation.
    pub generation: u64,
    /// Its log.
    pub log_id: String,
    /// Where it runs.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it last renewed its lease.
    pub renewed_seconds_ago: i64,
    /// It gave the lake up.
    pub released: bool,
}

/// Who holds the lake, or held it last; `None` when nobody ever did.
///
/// # Errors
/// [`LakeError`] when its files cannot be read.
pub async fn holder(lake: &Lake) -> Result<Option<Holder>, LakeError> {
    let Some(claim) = latest(lake).await? else { return Ok(None) };
    let lease: Option<Lease> = read(lake, &lease_name(claim.generation)).await?;
    let renewed_at = lease.as_ref().map_or(claim.claimed_at, |lease| lease.renewed_at);
    Ok(Some(Holder {
        generation: claim.generation,
        log_id: claim.log_id,
        host: claim.host,
        pid: claim.pid,
        renewed_seconds_ago: now().saturating_sub(renewed_at).max(0) / 1_000_000,
        released: lease.is_some_and(|lease| lease.released),
    }))
}

/// The present ownership of a lake.
#[derive(Debug)]
pub struct Ownership {
    lake: Lake,
    generation: u64,
    lasts: i64,
    renewal: CancellationToken,
    /// Another process took the lake.
    lost: CancellationToken,
    renewing: Option<tokio::task::JoinHandle<()>>,
}

impl Ownership {
    /// Takes the lake for the installation's log, which this process has locked; others may have it once it was not
    /// renewed for `lasts` µs. The lake has the records of its last log before `drained`.
    ///
    /// # Errors
    /// [`LakeError::Held`] names the holder; another log that was not drained keeps the lake even after its lease.
    pub async fn take(lake: &Lake, installation: &Installation, lasts: i64, drained: i64) -> Result<Self, LakeError> {
        let log_id = installation.log_id();
        let last = latest(lake).await?;
        if let Some(claim) = last.as_ref().filter(|claim| claim.log_id == log_id) {
            // The generation is noted beside the log before it is claimed: a copy of the log falls behind.
            let noted = installation.generation().map_err(|error| LakeError::Held(error.to_string()))?;
            if noted != claim.generation && noted != claim.generation + 1 {
                return Err(LakeError::Held(format!(
                    "the lake {} was last held by another copy of the log {log_id} (generation {}, this copy knows {noted}); go on with that copy, or give this one an empty [log] dir",
                    lake.url(),
                    claim.generation
                )));
            }
            // What the lake has of this log makes room for what a start writes.
            log::trim(installation.folder(), drained).map_err(|error| LakeError::Held(error.to_string()))?;
        }
        if let Some(claim) = &last
            && claim.log_id != log_id
        {
            let lease: Lease = read(lake, &lease_name(claim.generation)).await?.unwrap_or(Lease {
                renewed_at: claim.claimed_at,
                lasts: LEASE,
                drained: false,
                released: false,
            });
            let held = |why: String| {
                LakeError::Held(format!(
                    "the lake {} is held by process {} on {} (log {}, generation {}): {why}",
                    lake.url(),
                    claim.pid,
                    claim.host,
                    claim.log_id,
                    claim.generation
                ))
            };
            let until = lease.renewed_at.saturating_add(lease.lasts);
            if !lease.released && until > now() {
                return Err(held(format!("its lease lasts until {}; stop it first, or send usage to it", format_instant(until))));
            }
            if !lease.drained {
                return Err(held(
                    "its log still holds usage that is not in the lake; start it once more with that log, so that nothing accepted is lost"
                        .to_owned(),
                ));
            }
        }
        let generation = last.map_or(1, |claim| claim.generation + 1);
        installation.note_generation(generation).map_err(|error| LakeError::Held(error.to_string()))?;
        Failpoint::OwnerNoted.reached();
        let claim = Claim { generation, log_id: log_id.to_owned(), host: host(), pid: std::process::id(), claimed_at: now() };
        let json =
            serde_json::to_vec(&claim).map_err(|error| LakeError::File { path: claim_name(generation), message: error.to_string() })?;
        // The store may have made the claim and said no to a repetition of the same request.
        if !lake.create(&claim_name(generation), json).await? && read(lake, &claim_name(generation)).await? != Some(claim) {
            return Err(LakeError::Held(format!("the lake {} was taken by another process at this moment", lake.url())));
        }
        Failpoint::OwnerClaimed.reached();
        let mut ownership = Self {
            lake: lake.clone(),
            generation,
            lasts,
            renewal: CancellationToken::new(),
            lost: CancellationToken::new(),
            renewing: None,
        };
        ownership.write_lease(false, false).await?;
        Failpoint::OwnerLeased.reached();
        ownership.renewing = Some(ownership.keep_renewing());
        Ok(ownership)
    }

    /// The generation, which every manifest carries.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Makes sure that nobody took the lake since.
    ///
    /// # Errors
    /// [`LakeError::Held`] when somebody did.
    pub async fn check(&self) -> Result<(), LakeError> {
        match latest(&self.lake).await? {
            Some(claim) if claim.generation == self.generation => Ok(()),
            Some(claim) => Err(LakeError::Held(format!(
                "the lake was taken over by process {} on {} (generation {})",
                claim.pid, claim.host, claim.generation
            ))),
            None => Err(LakeError::Held("the lake's owner files are gone".to_owned())),
        }
    }

    /// Cancelled once a renewal of the lease finds that another process took the lake: one that was paused for long learns
    /// it without any usage.
    #[must_use]
    pub fn lost(&self) -> CancellationToken {
        self.lost.clone()
    }

    /// Gives the lake up; `drained` says that the log holds nothing that is not in it.
    ///
    /// # Errors
    /// [`LakeError::Store`].
    pub async fn release(mut self, drained: bool) -> Result<(), LakeError> {
        self.renewal.cancel();
        // A renewal under way must not overwrite the release.
        if let Some(renewing) = self.renewing.take() {
            let _ = renewing.await;
        }
        self.write_lease(drained, true).await?;
        Failpoint::OwnerReleased.reached();
        Ok(())
    }

    async fn write_lease(&self, drained: bool, released: bool) -> Result<(), LakeError> {
        write_lease(&self.lake, self.generation, self.lasts, drained, released).await
    }

    fn keep_renewing(&self) -> tokio::task::JoinHandle<()> {
        let (lake, generation, lasts) = (self.lake.clone(), self.generation, self.lasts);
        let (stop, lost) = (self.renewal.clone(), self.lost.clone());
        let pause = Duration::from_micros(lasts.unsigned_abs() / RENEWALS);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                match renew(&lake, generation, lasts).await {
                    Ok(true) => Failpoint::OwnerRenewed.reached(),
                    Ok(false) => return lost.cancel(),
                    Err(error) => tracing::warn!(%error, "the lease on the lake could not be renewed; trying again"),
                }
            }
        })
    }
}

impl Drop for Ownership {
    fn drop(&mut self) {
        self.renewal.cancel();
    }
}

/// Renews the lease; `false` when another process took the lake.
async fn renew(lake: &Lake, generation: u64, lasts: i64) -> Result<bool, LakeError> {
    write_lease(lake, generation, lasts, false, false).await?;
    Ok(latest(lake).await?.is_none_or(|claim| claim.generation == generation))
}

async fn write_lease(lake: &Lake, generation: u64, lasts: i64, drained: bool, released: bool) -> Result<(), LakeError> {
    let name = lease_name(generation);
    let lease = Lease { renewed_at: now(), lasts, drained, released };
    let json = serde_json::to_vec(&lease).map_err(|error| LakeError::File { path: name.clone(), message: error.to_string() })?;
    lake.replace(&name, json).await
}

async fn latest(lake: &Lake) -> Result<Option<Claim>, LakeError> {
    let names = lake.names("owner").await?;
    match names.iter().rev().find(|name| name.ends_with(".claim.json")) {
        Some(name) => read(lake, &format!("owner/{name}")).await,
        None => Ok(None),
    }
}

async fn read<T: serde::de::DeserializeOwned>(lake: &Lake, name: &str) -> Result<Option<T>, LakeError> {
    match lake.read(name).await? {
        Some(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| LakeError::File { path: name.to_owned(), message: error.to_string() })
        }
        None => Ok(None),
    }
}

fn claim_name(generation: u64) -> String {
    format!("owner/{generation:010}.claim.json")
}

fn lease_name(generation: u64) -> String {
    format!("owner/{generation:010}.lease.json")
}

fn host() -> String {
    std::fs::read_to_string("/etc/hostname").map_or_else(|_| "this host".to_owned(), |name| name.trim().to_owned())
}

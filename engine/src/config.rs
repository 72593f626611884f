//! `ratemill.toml`: where usage comes from, where it goes, and what is allowed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ratemill_connectors::decode::DecodeContext;
use ratemill_connectors::files::FilesConfig;
use ratemill_connectors::http::{ApiKey, ApiKeyError, ApiKeys, HttpLimits};
use ratemill_connectors::mapping::FieldRef;
use ratemill_connectors::mqtt::MqttConfig;
use ratemill_rules::session::SessionLimits;
use ratemill_schemas::nearest::did_you_mean;
use ratemill_schemas::time::parse_duration;
use ratemill_schemas::usage::{Dimension, DimensionType, RESERVED};
use ratemill_schemas::{EventHasher, Rounding, UsageSchema, windows};
use serde::Deserialize;

use crate::upkeep::{UpkeepConfig, UpkeepSettings};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("cannot read {path}: {source}; `ratemill init DIR` makes a project")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not say something that can be used.
    #[error("{rendered}")]
    Invalid {
        /// The message with the line underlined.
        rendered: String,
    },
    /// `${NAME}` is not set.
    #[error("{path}: environment variable {name} is not set")]
    Environment {
        /// The file.
        path: PathBuf,
        /// The variable.
        name: String,
    },
}

/// The whole of `ratemill.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The lake.
    #[serde(default)]
    pub lake: LakeConfig,
    /// The usage log.
    #[serde(default)]
    pub log: LogConfig,
    /// Epochs.
    #[serde(default)]
    pub epoch: EpochConfig,
    /// Invoicing.
    #[serde(default)]
    pub billing: BillingConfig,
    /// The HTTP listener; absent means none.
    pub http: Option<HttpConfig>,
    /// MQTT connectors.
    #[serde(default)]
    pub mqtt: Vec<MqttConfig>,
    /// File drops.
    #[serde(default)]
    pub files: Vec<FilesConfig>,
    /// Typed columns of usage beside the canonical ones.
    #[serde(default)]
    pub dimensions: BTreeMap<String, DimensionType>,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// Care for the lake.
    #[serde(default)]
    pub upkeep: UpkeepConfig,
}

/// `[lake]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LakeConfig {
    /// A folder (relative to the project), `file:///…` or `s3://bucket/prefix`.
    pub url: String,
    /// How long the lake stays ours while it cannot be told that we are there; then another log may have it.
    pub lease: String,
}

impl Default for LakeConfig {
    fn default() -> Self {
        Self { url: "lake".to_owned(), lease: "60 seconds".to_owned() }
    }
}

/// `[log]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A folder on a local disk, relative to the project.
    pub dir: PathBuf,
    /// Bytes that the log may have before senders are pushed back, like `"8 GiB"`.
    pub quota: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { dir: "log".into(), quota: "8 GiB".to_owned() }
    }
}

/// `[epoch]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EpochConfig {
    /// How often usage is rated and committed to the lake.
    pub interval: String,
    /// Bytes of log that make an epoch before its time, like `"64 MiB"`. Larger ones make fewer and
    /// larger files; questions for running charges wait while one is planned and folded.
    pub size: String,
    /// How long an input may be silent before it no longer holds the watermark back.
    pub idle: String,
    /// How long event ids stay in memory; older ones are looked up on disk.
    pub dedup_horizon: String,
    /// Whether usage is folded into open windows as it arrives, instead of read again when they close.
    pub fold: bool,
    /// How often the state of open windows is kept for the next start.
    pub checkpoint: String,
    /// How often what open windows come to is published as the table `running_charges`, or `"never"`.
    pub running: String,
}

impl Default for EpochConfig {
    fn default() -> Self {
        Self {
            interval: "30 seconds".to_owned(),
            size: "64 MiB".to_owned(),
            idle: "5 minutes".to_owned(),
            dedup_horizon: "40 days".to_owned(),
            fold: true,
            checkpoint: "5 minutes".to_owned(),
            running: "1 minute".to_owned(),
        }
    }
}

/// `[billing]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BillingConfig {
    /// Zone of the invoicing months.
    pub timezone: String,
    /// How invoice lines are rounded.
    pub rounding: Rounding,
}

impl Default for BillingConfig {
    fn default() -> Self {
        Self { timezone: "UTC".to_owned(), rounding: Rounding::HalfUp }
    }
}

/// `[http]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port; beyond loopback only with keys. Port 0 takes a free one.
    #[serde(default = "loopback")]
    pub listen: std::net::SocketAddr,
    /// Who may send usage.
    #[serde(default)]
    pub keys: Vec<KeyConfig>,
    /// Field of an event that holds the quantity; `data.quantity`, else `data.value`, by default.
    pub quantity: Option<String>,
    /// Bytes of a body as sent.
    #[serde(default = "body")]
    pub body_size: String,
    /// Bytes of a body after decompression.
    #[serde(default = "decoded")]
    pub decoded_size: String,
    /// Events of a call.
    #[serde(default = "events")]
    pub events: usize,
    /// How long a body may take to arrive.
    #[serde(default = "timeout")]
    pub timeout: String,
}

fn loopback() -> std::net::SocketAddr {
    std::net::SocketAddr::from(([127, 0, 0, 1], 8080))
}
fn body() -> String {
    "8 MiB".to_owned()
}
fn decoded() -> String {
    "32 MiB".to_owned()
}
fn events() -> usize {
    10_000
}
fn timeout() -> String {
    "30 seconds".to_owned()
}

/// One of `[[http.keys]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// Name, for people.
    pub name: String,
    /// SHA-256 of the key in hexadecimal.
    pub sha256: String,
    /// Whether it may read charges, too; a meter's key must not.
    #[serde(default)]
    pub charges: bool,
    /// Whether it may operate the engine: post pending changes, reload rules and reference data.
    #[serde(default)]
    pub operate: bool,
}

/// `[limits]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How far ahead of the clock an event may be.
    pub future_skew: String,
    /// Deepest nesting of a record.
    pub depth: usize,
    /// Largest record.
    pub record_size: String,
    /// Decoded usage that may wait for the log.
    pub queue_size: String,
    /// Memory of rating and of queries, each.
    pub query_memory: String,
    /// Partitions of a query, which so many cores can work on; those of the machine by default.
    pub query_partitions: Option<NonZeroUsize>,
    /// How long a query may run.
    pub query_time: String,
    /// Largest Parquet file of a drop.
    pub file_size: String,
    /// Smallest Parquet file that is kept as it is, where its columns allow it, in place of writing its rows again.
    pub adopted_size: String,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            future_skew: "1 hour".to_owned(),
            depth: 16,
            record_size: "256 KiB".to_owned(),
            queue_size: "128 MiB".to_owned(),
            query_memory: "2 GiB".to_owned(),
            query_partitions: None,
            query_time: "60 seconds".to_owned(),
            file_size: "2 GiB".to_owned(),
            adopted_size: "8 MiB".to_owned(),
        }
    }
}

/// A checked configuration with its sizes and times as numbers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// As it was written.
    pub config: Config,
    /// The project folder.
    pub folder: PathBuf,
    /// The log folder.
    pub log_folder: PathBuf,
    /// The usage schema.
    pub schema: Arc<UsageSchema>,
    /// Bytes of log before senders are pushed back.
    pub log_quota: u64,
    /// How long the lake stays ours without a renewal, µs.
    pub lease: i64,
    /// Time between epochs, µs.
    pub epoch_interval: i64,
    /// Bytes of log that make an epoch.
    pub epoch_bytes: u64,
    /// Time between checkpoints of open windows, µs.
    pub checkpoint_interval: i64,
    /// Time between publications of running charges, µs; `None` is never.
    pub running_interval: Option<i64>,
    /// Silence after which an input no longer holds the watermark back, µs.
    pub idle: i64,
    /// Time that ids stay in memory, µs.
    pub dedup_horizon: i64,
    /// Bytes of decoded usage that may wait.
    pub queue_bytes: usize,
    /// Bytes of memory of a query.
    pub query_bytes: usize,
    /// Longest query, µs.
    pub query_time: i64,
    /// Bytes of a Parquet file.
    pub file_bytes: u64,
    /// Smallest Parquet file that is adopted.
    pub adopted_bytes: u64,
    /// How far ahead of the clock an event may be dated, µs.
    pub future_skew: i64,
    /// Care for the lake.
    pub upkeep: UpkeepSettings,
    record_bytes: usize,
}

impl Settings {
    /// Reads and checks `ratemill.toml` in `folder`.
    ///
    /// # Errors
    /// [`ConfigError`] with the line underlined.
    pub fn load(folder: &Path) -> Result<Self, ConfigError> {
        Self::read(folder, false)
    }

    /// The same for reading the lake, which needs no connector's secrets: unset variables are empty.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_for_reading(folder: &Path) -> Result<Self, ConfigError> {
        Self::read(folder, true)
    }

    /// Names of the connectors.
    #[must_use]
    pub fn inputs(&self) -> Vec<String> {
        self.inputs_where(|_| true)
    }

    /// Those of them that move the watermark.
    #[must_use]
    pub fn moving_inputs(&self) -> Vec<String> {
        self.inputs_where(|files| !files.historical)
    }

    fn inputs_where(&self, is_wanted: impl Fn(&FilesConfig) -> bool) -> Vec<String> {
        let config = &self.config;
        let files = config.files.iter().filter(|files| is_wanted(files)).map(|files| files.name.clone());
        let http = config.http.iter().map(|_| "http".to_owned());
        config.mqtt.iter().map(|mqtt| mqtt.name.clone()).chain(files).chain(http).collect()
    }

    fn read(folder: &Path, unset_is_empty: bool) -> Result<Self, ConfigError> {
        let path = folder.join("ratemill.toml");
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let expanded = expand(&text, &path, unset_is_empty)?;
        let mut config: Config = toml::from_str(&expanded).map_err(|error| invalid(&path, &expanded, &error))?;
        for mqtt in &mut config.mqtt {
            for file in [&mut mqtt.ca_file, &mut mqtt.cert_file, &mut mqtt.key_file].into_iter().flatten() {
                *file = folder.join(&*file);
            }
        }
        Self::check(config, folder).map_err(|message| ConfigError::Invalid { rendered: format!("{}: {message}", path.display()) })
    }

    fn check(config: Config, folder: &Path) -> Result<Self, String> {
        let duration = |key: &str, text: &str| parse_duration(text).map_err(|error| format!("{key}: {error}"));
        let bytes = |key: &str, text: &str| parse_bytes(text).map_err(|error| format!("{key}: {error}"));
        windows::zone(&config.billing.timezone).map_err(|error| format!("billing.timezone: {error}"))?;
        for name in config.dimensions.keys() {
            if RESERVED.contains(&name.as_str()) {
                return Err(format!("dimension `{name}` is a column that every usage event has; call it something else"));
            }
            if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') || name.is_empty() {
                return Err(format!("dimension `{name}` must be made of lower-case letters, digits and _"));
            }
        }
        let mut names: Vec<&str> =
            config.mqtt.iter().map(|mqtt| mqtt.name.as_str()).chain(config.files.iter().map(|files| files.name.as_str())).collect();
        if config.http.is_some() {
            names.push("http");
        }
        if let Some(name) = names.iter().enumerate().find_map(|(index, name)| names[..index].contains(name).then_some(name)) {
            return Err(format!("two connectors are called `{name}`; watermarks and rejected records go by the name"));
        }
        if let Some(http) = &config.http
            && !http.listen.ip().is_loopback()
            && http.keys.is_empty()
        {
            return Err(format!("http.listen = \"{}\" is open to others; add [[http.keys]], or listen on 127.0.0.1", http.listen));
        }
        let dimensions = config.dimensions.iter().map(|(name, kind)| Dimension { name: name.clone(), kind: *kind }).collect();
        let limits = &config.limits;
        let size = |key: &str, text: &str| bytes(key, text).map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if limits.depth == 0 {
            return Err("limits.depth must be at least 1".to_owned());
        }
        let query_time = duration("limits.query_time", &limits.query_time)?;
        let running = (config.epoch.running != "never").then(|| duration("epoch.running", &config.epoch.running)).transpose();
        Ok(Self {
            schema: Arc::new(UsageSchema::new(dimensions)),
            log_folder: folder.join(&config.log.dir),
            log_quota: bytes("log.quota", &config.log.quota)?,
            lease: duration("lake.lease", &config.lake.lease)?.max(1_000_000),
            epoch_interval: duration("epoch.interval", &config.epoch.interval)?.max(10_000),
            epoch_bytes: bytes("epoch.size", &config.epoch.size)?,
            checkpoint_interval: duration("epoch.checkpoint", &config.epoch.checkpoint)?,
            running_interval: running.map_err(|error| format!("{error}, or \"never\""))?,
            upkeep: config.upkeep.check(query_time)?,
            idle: duration("epoch.idle", &config.epoch.idle)?,
            dedup_horizon: duration("epoch.dedup_horizon", &config.epoch.dedup_horizon)?,
            queue_bytes: size("limits.queue_size", &limits.queue_size)?,
            query_bytes: size("limits.query_memory", &limits.query_memory)?,
            query_time,
            file_bytes: bytes("limits.file_size", &limits.file_size)?,
            adopted_bytes: bytes("limits.adopted_size", &limits.adopted_size)?,
            future_skew: duration("limits.future_skew", &limits.future_skew)?,
            record_bytes: size("limits.record_size", &limits.record_size)?,
            folder: folder.to_owned(),
            config,
        })
    }

    /// What queries and rating may take.
    #[must_use]
    pub fn session_limits(&self) -> SessionLimits {
        let limits = SessionLimits { memory_bytes: self.query_bytes, ..SessionLimits::default() };
        let partitions = self.config.limits.query_partitions.map_or(limits.partitions, NonZeroUsize::get);
        SessionLimits { partitions, ..limits }
    }

    /// What decoders need.
    #[must_use]
    pub fn decode_context(&self, hasher: EventHasher) -> DecodeContext {
        DecodeContext {
            schema: Arc::clone(&self.schema),
            hasher,
            future_skew: self.future_skew,
            depth_max: self.config.limits.depth,
            record_bytes_max: self.record_bytes,
        }
    }
}

impl HttpConfig {
    /// The listener's keys.
    ///
    /// # Errors
    /// What is wrong with a hash.
    pub fn api_keys(&self) -> Result<ApiKeys, String> {
        let keys: Result<Vec<ApiKey>, ApiKeyError> =
            self.keys.iter().map(|key| Ok(ApiKey::new(&key.name, &key.sha256)?.reading(key.charges).operating(key.operate))).collect();
        keys.map(ApiKeys::new).map_err(|error| format!("http.keys: {error}"))
    }

    /// The limits of a call.
    ///
    /// # Errors
    /// What is wrong with a size or time.
    pub fn limits(&self) -> Result<HttpLimits, String> {
        let size = |key: &str, text: &str| {
            parse_bytes(text)
                .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX).min(1 << 30))
                .map_err(|error| format!("http.{key}: {error}"))
        };
        let timeout = parse_duration(&self.timeout).map_err(|error| format!("http.timeout: {error}"))?;
        Ok(HttpLimits {
            body_bytes_max: size("body_size", &self.body_size)?,
            decoded_bytes_max: size("decoded_size", &self.decoded_size)?,
            events_max: self.events,
            body_seconds_max: (timeout / 1_000_000).unsigned_abs().max(1),
        })
    }

    /// Where the quantity is.
    #[must_use]
    pub fn quantity(&self) -> Option<FieldRef> {
        self.quantity.clone().map(FieldRef::Field)
    }
}

/// `"64 MiB"`, `"1 GB"`, `"4096"` in bytes.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write it like \"256 MiB\"");
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().map_err(|_| wrong())?;
    let unit = match text[split..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// Replaces `${NAME}` by the environment variable, outside comments.
fn expand(text: &str, path: &Path, unset_is_empty: bool) -> Result<String, ConfigError> {
    let mut expanded = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        if !line.trim_start().starts_with('#') {
            while let Some((before, after)) = rest.split_once("${") {
                let Some((name, tail)) = after.split_once('}') else { break };
                let value = match std::env::var(name) {
                    Ok(value) => value,
                    Err(_) if unset_is_empty => String::new(),
                    Err(_) => return Err(ConfigError::Environment { path: path.to_owned(), name: name.to_owned() }),
                };
                expanded.push_str(before);
                // A quote or backslash in a secret must not end the text around it.
                expanded.push_str(&value.replace('\\', "\\\\").replace('"', "\\\""));
                rest = tail;
            }
        }
        expanded.push_str(rest);
    }
    Ok(expanded)
}

/// A TOML error with its line underlined; an unknown key with the nearest known one.
fn invalid(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let mut message = error.message().trim().to_owned();
    if let Some((unknown, expected)) = message.split_once(", expected ") {
        let name = unknown.split('`').nth(1).unwrap_or_default().to_owned();
        let names: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        message = format!("{unknown}{}; known are {}", did_you_mean(&name, names.iter().copied()), names.join(", "));
    }
    let mut rendered = format!("error: {message}\n --> {}", path.display());
    if let Some(span) = error.span() {
        let before = &text[..span.start.min(text.len())];
        let number = before.matches('\n').count() + 1;
        let line = text.lines().nth(number - 1).unwrap_or_default();
        let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count());
        // A line that holds an expanded secret is not shown.
        if std::fs::read_to_string(path).is_ok_and(|original| original.lines().nth(number - 1) == Some(line)) {
            let width = number.to_string().len();
            let length =
                text[span.start.min(text.len())..span.end.min(text.len())].lines().next().map_or(1, |part| part.chars().count()).max(1);
            rendered.push_str(&format!(
                ":{number}:{}\n{:width$} |\n{number} | {line}\n{:width$} | {:column$}{}",
                column + 1,
                "",
                "",
                "",
                "^".repeat(length)
            ));
        } else {
            rendered.push_str(&format!(":{number}"));
        }
    }
    ConfigError::Invalid { rendered }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn load(text: &str) -> Result<Settings, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ratemill.toml"), text).unwrap();
        Settings::load(folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        let error = load("[lake]\nurll = \"x\"\n").unwrap_err();
        assert!(error.contains("did you mean `url`?") && error.contains("ratemill.toml:2:1") && error.contains("^^^^"), "{error}");
    }

    #[test]
    fn an_open_listener_needs_keys() {
        assert!(load("[http]\nlisten = \"0.0.0.0:80\"\n").unwrap_err().contains("http.keys"));
        assert!(load("[http]\nlisten = \"127.0.0.1:0\"\n").is_ok());
    }

    #[test]
    fn secrets_come_from_the_environment() {
        let error = load("[lake]\nurl = \"${RATEMILL_NOT_SET_ANYWHERE}\"\n").unwrap_err();
        assert!(error.contains("RATEMILL_NOT_SET_ANYWHERE is not set"), "{error}");
    }
}

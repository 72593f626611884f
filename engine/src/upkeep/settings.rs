//! `[upkeep]` in `ratemill.toml`.

use std::time::Duration;

use ratemill_schemas::time::parse_duration;
use serde::Deserialize;

/// `[upkeep]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpkeepConfig {
    /// Whether the running engine does it, too; else only `ratemill upkeep` does.
    pub live: bool,
    /// How often the running engine looks for something to do.
    pub interval: String,
    /// Small files of a closed day or month that are worth joining.
    pub files: usize,
    /// Commits after which a table gets a Delta checkpoint.
    pub checkpoint: u64,
    /// How long data files stay that were joined or replaced.
    pub keep_files: String,
    /// How long manifests and completion records stay of epochs that published nothing.
    pub keep_epochs: String,
}

impl Default for UpkeepConfig {
    fn default() -> Self {
        Self {
            live: true,
            interval: "1 minute".to_owned(),
            files: 8,
            checkpoint: 50,
            keep_files: "7 days".to_owned(),
            keep_epochs: "7 days".to_owned(),
        }
    }
}

/// The same as numbers.
#[derive(Debug, Clone, Copy)]
pub struct UpkeepSettings {
    /// Whether the running engine does it, too.
    pub live: bool,
    /// Time between two rounds of the running engine.
    pub interval: Duration,
    /// Small files of a closed day or month that are worth joining.
    pub files_min: usize,
    /// Commits after which a table gets a Delta checkpoint.
    pub checkpoint_commits: u64,
    /// Seconds that removed data files stay.
    pub keep_seconds: u64,
    /// Seconds that those of `running_charges` stay, whose old versions nobody asks for.
    pub keep_running_seconds: u64,
    /// Time that manifests and completion records stay of epochs that published nothing, µs.
    pub keep_epochs: i64,
}

/// Seconds that replaced files of `running_charges` stay, at most.
const KEEP_RUNNING: u64 = 3600;

impl UpkeepConfig {
    /// Checks it; a query may take `query_time` µs.
    ///
    /// # Errors
    /// What is wrong, by its key.
    pub fn check(&self, query_time: i64) -> Result<UpkeepSettings, String> {
        let duration = |key: &str, text: &str| parse_duration(text).map_err(|error| format!("upkeep.{key}: {error}"));
        let seconds = |micros: i64| micros.unsigned_abs().div_ceil(1_000_000);
        let (interval, keep_files) = (duration("interval", &self.interval)?, duration("keep_files", &self.keep_files)?);
        if self.files < 2 {
            return Err("upkeep.files must be at least 2".to_owned());
        }
        if self.checkpoint == 0 {
            return Err("upkeep.checkpoint must be at least 1".to_owned());
        }
        if keep_files < query_time {
            return Err("upkeep.keep_files must be at least limits.query_time, else a query loses the files that it reads; try \"7 days\""
                .to_owned());
        }
        Ok(UpkeepSettings {
            live: self.live,
            interval: Duration::from_micros(interval.unsigned_abs()).max(Duration::from_millis(10)),
            files_min: self.files,
            checkpoint_commits: self.checkpoint,
            keep_seconds: seconds(keep_files),
            keep_running_seconds: seconds(keep_files).min(KEEP_RUNNING.max(seconds(query_time))),
            keep_epochs: duration("keep_epochs", &self.keep_epochs)?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_outlive_every_query() {
        let kept = |keep_files: &str, query_time: i64| {
            let checked = UpkeepConfig { keep_files: keep_files.to_owned(), ..UpkeepConfig::default() }.check(query_time);
            checked.map(|settings| (settings.keep_seconds, settings.keep_running_seconds))
        };
        assert_eq!(kept("7 days", 60_000_000), Ok((7 * 86_400, 3600)));
        assert_eq!(kept("7 days", 7_200_000_000), Ok((7 * 86_400, 7200)));
        assert_eq!(kept("90 seconds", 60_000_000), Ok((90, 90)));
        assert!(kept("59 seconds", 60_000_000).unwrap_err().contains("limits.query_time"));
    }
}

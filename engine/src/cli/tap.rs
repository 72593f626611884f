//! `ratemill tap`: live rows as NDJSON.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ratemill_rules::{Rule, RuleProject};
use ratemill_schemas::nearest::did_you_mean;
use tokio::time::Instant;

use super::{Failure, Project, stop_signal, with_causes};
use crate::config::Settings;
use crate::log::LogError;
use crate::pipeline::shown;
use crate::tap::{Tap as Tapped, Wanted};

/// How often the log is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// `ratemill tap`
#[derive(Debug, Args)]
pub(super) struct Tap {
    #[command(flatten)]
    project: Project,
    /// Only what came by this connector.
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
    /// Only events of this meter.
    #[arg(long, value_name = "NAME")]
    meter: Option<String>,
    /// Only events of this subject.
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
    /// Only events of meters that this rule reads.
    #[arg(long, value_name = "NAME", conflicts_with = "rejected")]
    rule: Option<String>,
    /// Rejected records, with their reason, instead of what was accepted.
    #[arg(long, conflicts_with_all = ["meter", "subject"])]
    rejected: bool,
    /// Begin with what the usage log still holds, instead of with what comes from now on.
    #[arg(long)]
    held: bool,
    /// End after so many records.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// End after so many seconds.
    #[arg(long, default_value_t = 30, value_name = "N")]
    seconds: u64,
}

impl Tap {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.follow() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn follow(&self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let settings = Settings::load_for_reading(folder).map_err(Failure::usage)?;
        let rule = match &self.rule {
            Some(name) => Some(self.versions(name, &settings).await?),
            None => None,
        };
        let (connector, meter, subject) = (self.connector.clone(), self.meter.clone(), self.subject.clone());
        if let Some(name) = &connector {
            let inputs = settings.inputs();
            if !inputs.contains(name) {
                let hint = did_you_mean(name, inputs.iter().map(String::as_str));
                return Err(Failure::usage(format!("the project has no connector `{name}`{hint}")));
            }
        }
        let wanted = Wanted { connector, meter, subject, rule, rejected: self.rejected };
        let log = &settings.log_folder;
        let mut tap = Tapped::open(log, Arc::clone(&settings.schema), wanted, self.held).map_err(|error| match &error {
            LogError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Failure::failed(format!(
                "there is no usage log in {}: `ratemill run -C {}` makes one; tap reads it on the machine of the engine",
                log.display(),
                shown(folder)
            )),
            _ => Failure::failed(with_causes(&error)),
        })?;
        eprintln!("following {} from position {}", log.display(), tap.position());
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let (mut left, mut missed) = (self.limit, 0);
        let mut stdout = std::io::stdout();
        while left > 0 && Instant::now() < end {
            let Some(lines) = tap.lines().map_err(|error| Failure::failed(with_causes(&error)))? else {
                tokio::time::sleep(PAUSE.min(end.saturating_duration_since(Instant::now()))).await;
                continue;
            };
            if tap.missed() > missed {
                eprintln!("{} records left the log before they were read", tap.missed() - missed);
                missed = tap.missed();
            }
            for line in lines.iter().take(left) {
                // Whoever reads may have seen enough.
                if writeln!(stdout, "{line}").is_err() {
                    return Ok(());
                }
            }
            left = left.saturating_sub(lines.len());
            let _ = stdout.flush();
        }
        Ok(())
    }

    /// Every version of the rule that is in the project.
    async fn versions(&self, name: &str, settings: &Settings) -> Result<Vec<Rule>, Failure> {
        let folder = &self.project.folder;
        let loaded = RuleProject::load(folder, &shown(folder), Arc::clone(&settings.schema)).await;
        let (project, _) = loaded.map_err(Failure::rules)?;
        let hint = did_you_mean(name, project.rules.iter().map(|rule| rule.name.as_str()));
        let versions: Vec<Rule> = project.rules.into_iter().filter(|rule| rule.name == name).collect();
        if versions.is_empty() {
            return Err(Failure::usage(format!("the project has no rule `{name}`{hint}")));
        }
        Ok(versions)
    }
}

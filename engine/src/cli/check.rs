//! `ratemill check`.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use ratemill_connectors::files::FileReader;
use ratemill_connectors::mapping::FieldRef;
use ratemill_connectors::mqtt::Mqtt;
use ratemill_connectors::{Intake, files::FilesConfig};
use ratemill_rules::diagnostics::Place;
use ratemill_rules::{Diagnostic, RuleProject};
use ratemill_schemas::EventHasher;
use ratemill_schemas::nearest::did_you_mean;

use super::Failure;
use crate::config::Settings;
use crate::pipeline::shown;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// `ratemill check [DIR]`
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The project folder, which holds ratemill.toml.
    #[arg(default_value = ".", value_name = "DIR")]
    folder: PathBuf,
    /// How findings are written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Check {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let settings = Settings::load(&self.folder).map_err(Failure::usage)?;
        check_connectors(&settings)?;
        let (diagnostics, rules) = match RuleProject::load(&self.folder, &shown(&self.folder), Arc::clone(&settings.schema)).await {
            Ok((project, mut diagnostics)) => {
                diagnostics.0.extend(meters_that_miss(&settings, &project, &self.folder));
                (diagnostics, Some(project.rules.len()))
            }
            Err(diagnostics) => (diagnostics, None),
        };
        match self.format {
            Format::Json => println!("{}", serde_json::to_string_pretty(&diagnostics).map_err(Failure::failed)?),
            Format::Text if !diagnostics.0.is_empty() => println!("{}", diagnostics.render(std::io::stdout().is_terminal())),
            Format::Text => {}
        }
        match rules {
            Some(rules) => {
                eprintln!("{rules} rules are sound");
                Ok(())
            }
            None => {
                let errors =
                    diagnostics.0.iter().filter(|diagnostic| diagnostic.severity == ratemill_rules::diagnostics::Severity::Error).count();
                Err(Failure::rules(format!("{errors} {}", if errors == 1 { "error" } else { "errors" })))
            }
        }
    }
}

/// Checks mappings, templates and limits without connecting to anything.
fn check_connectors(settings: &Settings) -> Result<(), Failure> {
    let context = settings.decode_context(EventHasher::new([0, 0]));
    let (intake, _queue) = Intake::bounded(1);
    for config in &settings.config.mqtt {
        Mqtt::new(config.clone(), context.clone(), intake.clone()).map_err(Failure::usage)?;
    }
    for config in &settings.config.files {
        let config: &FilesConfig = config;
        FileReader::new(config, context.clone(), intake.clone(), settings.file_bytes).map_err(Failure::usage)?;
        config.check().map_err(Failure::usage)?;
    }
    if let Some(http) = &settings.config.http {
        http.api_keys().map_err(Failure::usage)?;
        http.limits().map_err(Failure::usage)?;
    }
    Ok(())
}

/// Meters that an input sends and no rule reads, and meters that a rule reads and no input seems to send.
fn meters_that_miss(settings: &Settings, project: &RuleProject, folder: &Path) -> Vec<Diagnostic> {
    let constant = |meter: &Option<FieldRef>| match meter {
        Some(FieldRef::Constant { constant }) => Some(constant.clone()),
        _ => None,
    };
    let files = settings.config.files.iter().map(|input| ("files", &input.name, constant(&input.mapping.meter)));
    let mqtt = settings.config.mqtt.iter().map(|input| ("mqtt", &input.name, constant(&input.mapping.meter)));
    let inputs: Vec<_> = files.chain(mqtt).collect();
    // Events that name their own meter may name any.
    let any = inputs.is_empty() || settings.config.http.is_some() || inputs.iter().any(|(.., meter)| meter.is_none());
    let sent: BTreeSet<String> = inputs.iter().filter_map(|(.., meter)| meter.clone()).collect();
    let name = format!("{}/ratemill.toml", shown(folder));
    let text = std::fs::read_to_string(folder.join("ratemill.toml")).unwrap_or_default();
    let mut found = Vec::new();
    for (kind, input, meter) in &inputs {
        let Some(meter) = meter.as_ref().filter(|meter| !project.rules.iter().any(|rule| rule.reads(meter))) else { continue };
        let quoted = format!("\"{meter}\"");
        let place = text.lines().zip(1_u64..).find_map(|(line, number)| {
            let column = u64::try_from(line[..line.find(&quoted)?].chars().count()).ok()? + 1;
            Some(Place { line: number, column, end_line: number, end_column: column + u64::try_from(quoted.chars().count()).ok()? })
        });
        let message = format!("meter `{meter}` of [[{kind}]] `{input}` is read by no rule: its usage is kept and never charged");
        found.push(Diagnostic::error("meter-unread", &name, &text, place, message).warning());
    }
    for rule in &project.rules {
        for meter in rule.meters.iter().flatten().filter(|meter| !sent.contains(*meter)) {
            let near = did_you_mean(meter, sent.iter().map(String::as_str));
            if !any || !near.is_empty() {
                let message = format!("no configured input sends meter `{meter}`{near}");
                found.push(Diagnostic::error("meter-unsent", &rule.file, &rule.text, None, message).warning());
            }
        }
    }
    found
}

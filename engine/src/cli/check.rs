//! `ratemill check`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use ratemill_connectors::files::FileReader;
use ratemill_connectors::mqtt::Mqtt;
use ratemill_connectors::{Intake, files::FilesConfig};
use ratemill_rules::RuleProject;
use ratemill_schemas::EventHasher;

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
            Ok((project, diagnostics)) => (diagnostics, Some(project.rules.len())),
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
                Err(Failure::rules(format!("{errors} errors")))
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

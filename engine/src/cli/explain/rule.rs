//! `ratemill explain rule`.

use std::path::Path;
use std::sync::Arc;

use clap::Args;
use ratemill_rules::explain::{Explanation, explain};
use ratemill_rules::{Rule, RuleProject};
use ratemill_schemas::nearest::did_you_mean;

use super::Format;
use crate::cli::{Failure, Project};
use crate::config::Settings;
use crate::pipeline::shown;

/// `ratemill explain rule RULE`
#[derive(Debug, Args)]
pub(super) struct ExplainRule {
    /// The rule; every version of it in the project is explained.
    rule: String,
    #[command(flatten)]
    project: Project,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl ExplainRule {
    pub(super) async fn run(self) -> Result<(), Failure> {
        explained(&self.rule, &self.project.folder, self.format).await
    }
}

/// Explains every version of a rule.
pub(super) async fn explained(name: &str, folder: &Path, format: Format) -> Result<(), Failure> {
    let settings = Settings::load(folder).map_err(Failure::usage)?;
    let loaded = RuleProject::load(folder, &shown(folder), Arc::clone(&settings.schema)).await;
    let (project, _) = loaded.map_err(Failure::rules)?;
    let project = Arc::new(project);
    let versions: Vec<&Rule> = project.rules.iter().filter(|rule| rule.name == name).collect();
    if versions.is_empty() {
        let hint = did_you_mean(name, project.rules.iter().map(|rule| rule.name.as_str()));
        return Err(Failure::usage(format!("the project has no rule `{name}`{hint}")));
    }
    let mut explanations = Vec::new();
    for rule in versions {
        explanations.push(explain(&project, rule).await.map_err(Failure::failed)?);
    }
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&explanations).map_err(Failure::failed)?),
        Format::Text => explanations.iter().for_each(print),
    }
    Ok(())
}

fn print(explanation: &Explanation) {
    let because = |reason: &Option<String>| reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let answer = |yes: bool| if yes { "yes" } else { "no" };
    println!("{}  version {}  {}", explanation.rule, explanation.version, explanation.file);
    println!("windows      {}", explanation.windows);
    println!("effective    {}", explanation.effective);
    for (index, input) in explanation.inputs.iter().enumerate() {
        println!("{}{input}", if index == 0 { "reads        " } else { "             " });
    }
    println!("reach        {}", explanation.reach);
    println!("lifted       {}{}", answer(explanation.lifted), because(&explanation.lifted_because));
    println!("incremental  {}{}", answer(explanation.incremental), because(&explanation.incremental_because));
    println!("\ncolumns");
    let width = explanation.columns.iter().map(|column| column.name.len()).max().unwrap_or(0);
    for column in &explanation.columns {
        let from = if column.from.is_empty() { "a constant".to_owned() } else { column.from.join(", ") };
        let identity = if column.identity { "identity" } else { "" };
        println!("  {:width$}  {:15}  {identity:8}  {from}", column.name, column.data_type);
    }
    println!("\nplan\n{}\n", explanation.plan);
}

//! Versions of rules and reference data: kept in the lake, found again, and compared with what is published.

use std::collections::BTreeSet;
use std::sync::Arc;

use ratemill_rules::reference::ReferenceFiles;
use ratemill_rules::{Diagnostics, ReferenceData, Rule, RuleProject, RuleWindow};
use ratemill_schemas::windows::WindowError;
use ratemill_schemas::{Window, WindowSpec, time};

use super::due;
use super::manifest::encode;
use super::rate::Rating;
use super::run::{EpochError, Epochs};
use super::state::EngineState;
use crate::lake::Lake;

impl Epochs {
    /// What is published must fit the project: every rule is there, its windows are cut as they were, and its further
    /// columns have the types that the ledger has.
    pub(super) fn check_against_ledger(&self, project: &RuleProject) -> Result<(), EpochError> {
        let wrong = |rule: &str, version: &str, message: String| EpochError::Version {
            rule: rule.to_owned(),
            version: version.to_owned(),
            message,
        };
        for range in self.state.finalized.iter().filter(|range| range.published) {
            let Some(rule) = project.rules.iter().find(|rule| rule.name == range.rule) else {
                let message =
                    "has published windows, but its file is gone; put it back, and end it with effective_to if it is over".to_owned();
                return Err(wrong(&range.rule, &range.rule_version, message));
            };
            let window = &rule.options.window;
            let cut_differently = |spec: &WindowSpec| -> Result<bool, WindowError> {
                Ok(match spec {
                    WindowSpec::BillingPeriod => range.contract_id.is_none(),
                    _ if range.contract_id.is_some() => true,
                    spec => spec.window_of(range.start)?.start != range.start || spec.window_of(range.end - 1)?.end != range.end,
                })
            };
            if cut_differently(window)? {
                let message = "has published windows that were cut differently; keep window and timezone, or give the new rule another name, and end this one with effective_to".to_owned();
                return Err(wrong(&range.rule, &rule.version, message));
            }
        }
        for range in self.state.finalized.iter().filter(|range| range.published) {
            let first_of_last = match project.rules.iter().find(|rule| rule.name == range.rule).map(|rule| &rule.options.window) {
                Some(WindowSpec::BillingPeriod) | None => range.start,
                Some(spec) => spec.window_of(range.end - 1)?.start,
            };
            let in_force = |start: i64| project.rules.iter().any(|rule| rule.name == range.rule && rule.in_force_at(start));
            if let Some(start) = [range.start, first_of_last].into_iter().find(|start| !in_force(*start)) {
                let message = format!(
                    "has published windows from {} that no version is in force for by now; keep the version that published them beside the new one, and end it with effective_to",
                    time::format_instant(start)
                );
                return Err(wrong(&range.rule, &range.rule_version, message));
            }
            let window = Window { start: range.start, end: range.end };
            let rated = RuleWindow { window, contract_id: range.contract_id.clone() };
            if !due::is_current(&project.reference, &rated)? {
                tracing::warn!(
                    rule = range.rule,
                    window = %rated,
                    "this billing period is published, and its contract cuts it differently by now; `ratemill pending` shows the difference, `ratemill apply` posts it"
                );
            }
        }
        let ledger = self.tables.charges.schema()?;
        for rule in &project.rules {
            for column in rule.further_columns() {
                let Some(known) = ledger.fields().iter().find(|field| field.name().eq_ignore_ascii_case(&column.name)) else { continue };
                let stored = ratemill_rules::evaluate::stored_type(&column.data_type);
                if *known.name() != column.name || *known.data_type() != stored {
                    let message = format!(
                        "column `{}` is {stored}, but the ledger has `{}` as {}; give it another name",
                        column.name,
                        known.name(),
                        known.data_type()
                    );
                    return Err(wrong(&rule.name, &rule.version, message));
                }
            }
        }
        Ok(())
    }

    /// Keeps rules and reference data in the lake, under their versions.
    pub(super) async fn keep_versions(&self, project: &RuleProject) -> Result<(), EpochError> {
        for rule in &project.rules {
            let reads = project.reads(rule);
            if !reads.is_empty() {
                let name = reads_file(&rule.name, &rule.version);
                self.lake.create(&name, encode(&name, &reads)?).await?;
            }
            self.lake.create(&rule_file(&rule.name, &rule.version), rule.text.clone().into_bytes()).await?;
        }
        let name = reference_file(project.reference.version());
        let content = encode(&name, &project.reference.files())?;
        self.lake.create(&name, content).await?;
        Ok(())
    }
}

impl Rating<'_> {
    /// The versions that published windows and are not in the project.
    pub(super) async fn former(&self, state: &EngineState) -> Vec<Rule> {
        let mut former: Vec<Rule> = Vec::new();
        for range in state.finalized.iter().filter(|range| range.published) {
            let known = |rule: &Rule| rule.name == range.rule && rule.version == range.rule_version;
            if self.project.rules.iter().any(known) || former.iter().any(known) {
                continue;
            }
            match self.version(&range.rule, &range.rule_version, &range.reference_version).await {
                Ok(project) => former.extend(project.rules.iter().filter(|rule| known(rule)).cloned()),
                Err(error) => tracing::error!(%error, "late usage of windows that this version published cannot be rated"),
            }
        }
        former
    }

    /// The project at a version: the present one, or an older one out of the lake.
    pub(super) async fn version(&self, rule: &str, rule_version: &str, reference_version: &str) -> Result<Arc<RuleProject>, EpochError> {
        if self.project.reference.version() == reference_version && self.project.rule(rule, rule_version).is_some() {
            return Ok(Arc::clone(self.project));
        }
        let missing = |message: String| EpochError::Version { rule: rule.to_owned(), version: rule_version.to_owned(), message };
        let mut texts = Vec::new();
        let mut wanted = vec![(rule.to_owned(), rule_version.to_owned())];
        let mut seen = BTreeSet::new();
        while let Some((name, version)) = wanted.pop() {
            if !seen.insert((name.clone(), version.clone())) {
                continue;
            }
            let file = rule_file(&name, &version);
            let text = self.lake.read(&file).await?.ok_or_else(|| missing(format!("`{name}` {version} is not in the lake any more")))?;
            texts.push((file, String::from_utf8_lossy(&text).into_owned()));
            if let Some(reads) = self.lake.read(&reads_file(&name, &version)).await? {
                let reads: Vec<(String, String)> = serde_json::from_slice(&reads).map_err(|error| missing(error.to_string()))?;
                wanted.extend(reads);
            }
        }
        let files = reference_files(self.lake, reference_version)
            .await?
            .ok_or_else(|| missing(format!("reference version {reference_version} is not in the lake any more")))?;
        let mut diagnostics = Diagnostics::default();
        let reference = ReferenceData::from_files(files, "lake", &mut diagnostics);
        RuleProject::check(texts, reference, Arc::clone(self.schema), diagnostics)
            .await
            .map(|(project, _)| Arc::new(project))
            .map_err(|diagnostics| missing(diagnostics.to_string()))
    }
}

/// The versions of the rules that a version reads.
fn reads_file(rule: &str, version: &str) -> String {
    format!("rules/{rule}-{version}.reads.json")
}

fn rule_file(rule: &str, version: &str) -> String {
    format!("rules/{rule}-{version}.sql")
}

fn reference_file(version: &str) -> String {
    format!("reference/{version}.json")
}

/// The files of a version of the reference data; `None` where the lake does not have it, or not as it was written.
pub(super) async fn reference_files(lake: &Lake, version: &str) -> Result<Option<ReferenceFiles>, EpochError> {
    let bytes = lake.read(&reference_file(version)).await?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

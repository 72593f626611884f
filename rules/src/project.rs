//! A rule project: `rules/*.sql` and `reference/`, checked as a whole.

use std::path::Path;
use std::sync::Arc;

use ratemill_schemas::UsageSchema;
use sha2::{Digest, Sha256};

use crate::as_of;
use crate::check;
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::functions::FUNCTIONS_VERSION;
use crate::reference::ReferenceData;
use crate::rule::Rule;
use crate::statement;

/// Every rule and reference table of a project, checked.
#[derive(Debug, Clone)]
pub struct RuleProject {
    /// The rules, by name and effective time.
    pub rules: Vec<Rule>,
    /// The reference data.
    pub reference: ReferenceData,
    /// The usage that rules see.
    pub usage: Arc<UsageSchema>,
}

impl RuleProject {
    /// Reads and checks the project in `folder`; `shown` is how the folder is named in messages.
    ///
    /// # Errors
    /// Every finding of the check, when one of them is an error.
    pub async fn load(folder: &Path, shown: &str, usage: Arc<UsageSchema>) -> Result<(Self, Diagnostics), Diagnostics> {
        let mut diagnostics = Diagnostics::default();
        let reference = ReferenceData::load(&folder.join("reference"), shown, &mut diagnostics);
        let mut files = Vec::new();
        let rules_folder = folder.join("rules");
        match std::fs::read_dir(&rules_folder) {
            Ok(entries) => {
                let mut paths: Vec<_> =
                    entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "sql")).collect();
                paths.sort();
                for path in paths {
                    let name = format!("{shown}/rules/{}", path.file_name().unwrap_or_default().to_string_lossy());
                    match std::fs::read_to_string(&path) {
                        Ok(text) => files.push((name, text)),
                        Err(error) => diagnostics.push(Diagnostic::error("rule-file", &name, "", None, format!("cannot be read: {error}"))),
                    }
                }
            }
            Err(error) => {
                diagnostics.push(Diagnostic::error("rule-file", &format!("{shown}/rules"), "", None, format!("cannot be read: {error}")))
            }
        }
        Self::check(files, reference, usage, diagnostics).await
    }

    /// Checks rules given as (file, text), as they are kept in the lake.
    ///
    /// # Errors
    /// Every finding, when one of them is an error.
    pub async fn check(
        files: Vec<(String, String)>,
        reference: ReferenceData,
        usage: Arc<UsageSchema>,
        mut diagnostics: Diagnostics,
    ) -> Result<(Self, Diagnostics), Diagnostics> {
        let mut rules: Vec<Rule> = Vec::new();
        for (file, text) in files {
            let Some(parsed) = statement::parse(&file, &text, &mut diagnostics) else { continue };
            let mut query = parsed.query;
            let rewritten = as_of::rewrite(&mut query, &reference, parsed.options.fan_out_allowed, &file, &text, &mut diagnostics);
            let scans = rewritten.tables.iter().filter(|table| *table == "usage").count();
            let from = parsed.options.effective_from;
            if parsed.options.window.window_of(from).is_ok_and(|window| window.start != from) {
                let message = "effective_from lies inside a window; that window is not rated";
                diagnostics.push(Diagnostic::error("effective-from", &file, &text, None, message).warning());
            }
            let checked = check::output(&query, scans, &reference, &usage, &file, &text, &mut diagnostics).await;
            let Some(checked) = checked else { continue };
            rules.push(Rule {
                name: parsed.name,
                version: version(&text),
                file,
                text,
                options: parsed.options,
                meters: checked.meters,
                reads_usage: rewritten.tables.iter().any(|table| table == "usage"),
                output: checked.output,
                query,
                fan_out: rewritten.fan_out,
            });
        }
        check::across(&rules, &mut diagnostics);
        rules.sort_by(|a, b| a.name.cmp(&b.name).then(a.options.effective_from.cmp(&b.options.effective_from)));
        if diagnostics.has_errors() { Err(diagnostics) } else { Ok((Self { rules, reference, usage }, diagnostics)) }
    }

    /// The rule of this name and version.
    #[must_use]
    pub fn rule(&self, name: &str, version: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.name == name && rule.version == version)
    }
}

/// Hash of a rule's text and of the functions that it can call.
fn version(text: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(FUNCTIONS_VERSION);
    hash.update([0]);
    hash.update(text);
    hex::encode(&hash.finalize()[..8])
}

//! A rule project: `rules/*.sql` and `reference/`, checked as a whole.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use ratemill_schemas::nearest::did_you_mean;
use ratemill_schemas::{UsageSchema, WindowSpec};
use arrow::datatypes::DataType;
use sha2::{Digest, Sha256};
use sqlparser::ast::{Expr, SelectItem, SetExpr};

use crate::as_of::{self, Rewritten};
use crate::check;
use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::functions::FUNCTIONS_VERSION;
use crate::reference::ReferenceData;
use crate::inputs::Inputs;
use crate::rule::{OutputColumn, Rule};
use crate::statement::{self, ParsedRule};

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
        let mut drafts = Vec::new();
        let mut names = BTreeSet::new();
        for (file, text) in files {
            let Some(parsed) = statement::parse(&file, &text, &mut diagnostics) else { continue };
            if reference.table(&parsed.name).is_some() || ["usage", "opening", "billing_window", "charges"].contains(&parsed.name.as_str()) {
                let message = format!("`{}` is a table already; give the rule another name", parsed.name);
                diagnostics.push(Diagnostic::error("rule-name", &file, &text, None, message));
                continue;
            }
            names.insert(parsed.name.clone());
            drafts.push((file, text, parsed));
        }
        let mut drafts: Vec<Draft> = drafts
            .into_iter()
            .map(|(file, text, mut parsed)| {
                let rewritten = as_of::rewrite(&mut parsed.query, &reference, &names, &parsed.options, &file, &text, &mut diagnostics);
                Draft { file, text, parsed, rewritten }
            })
            .collect();
        for draft in &drafts {
            draft.check_options(&names, &reference, &usage, &mut diagnostics);
        }
        let mut rules: Vec<Rule> = Vec::new();
        // Upstream first; what is left in the end reads itself in a circle.
        while !drafts.is_empty() {
            let waiting: BTreeSet<String> = drafts.iter().map(|draft| draft.parsed.name.clone()).collect();
            let (ready, rest): (Vec<Draft>, Vec<Draft>) = drafts.into_iter().partition(|draft| draft.reads(&names).is_disjoint(&waiting));
            if ready.is_empty() {
                for draft in &rest {
                    let message = format!("rule `{}` reads itself through {}", draft.parsed.name, listed(draft.reads(&names).iter()));
                    diagnostics.push(
                        Diagnostic::error("rule-circle", &draft.file, &draft.text, None, message)
                            .help("charges of the same window cannot depend on themselves; earlier.NAME reads those of earlier windows"),
                    );
                }
                break;
            }
            drafts = rest;
            for draft in ready {
                let mut upstream = draft.inputs(&names, &rules, &usage);
                if draft.rewritten.earlier.iter().any(|(rule, _)| *rule == draft.parsed.name) {
                    upstream = draft.with_own_columns(upstream, &reference).await;
                }
                let scans = draft.rewritten.tables.iter().filter(|table| *table == "usage" || *table == "opening").count();
                let Draft { file, text, parsed, rewritten } = draft;
                let checked = check::output(&parsed.query, scans, &reference, &upstream, &file, &text, &mut diagnostics).await;
                let Some(checked) = checked else {
                    // Readers would only repeat what is wrong here.
                    names.remove(&parsed.name);
                    drafts.retain(|reader| !reader.rewritten.tables.contains(&parsed.name));
                    continue;
                };
                rules.push(upstream.rule(file, text, parsed, rewritten, checked, &rules));
            }
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

impl RuleProject {
    /// Name and version of every rule that `rule` reads, itself left out.
    #[must_use]
    pub fn reads(&self, rule: &Rule) -> Vec<(String, String)> {
        let read = |name: &String| *name != rule.name && (rule.upstream.contains(name) || rule.earlier.contains(name));
        self.rules.iter().filter(|other| read(&other.name)).map(|other| (other.name.clone(), other.version.clone())).collect()
    }
}

/// A rule that is parsed, but not yet checked against its inputs.
struct Draft {
    file: String,
    text: String,
    parsed: ParsedRule,
    rewritten: Rewritten,
}

impl Draft {
    /// The other rules whose charges it reads.
    fn reads(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        let earlier = self.rewritten.earlier.iter().map(|(rule, _)| rule).filter(|rule| **rule != self.parsed.name);
        self.rewritten.tables.iter().chain(earlier).filter(|table| names.contains(*table)).cloned().collect()
    }

    fn inputs(&self, names: &BTreeSet<String>, rules: &[Rule], usage: &UsageSchema) -> Inputs {
        let upstream: BTreeSet<String> = self.rewritten.tables.iter().filter(|table| names.contains(*table)).cloned().collect();
        let earlier: BTreeSet<String> = self.rewritten.earlier.iter().map(|(rule, _)| rule.clone()).collect();
        Inputs::new(upstream, earlier, !self.parsed.options.carry.is_empty(), &self.parsed.name, rules, usage)
    }

    /// A rule that reads its own earlier charges sees its own further columns: their types are found by planning until
    /// they no longer change.
    async fn with_own_columns(&self, inputs: Inputs, reference: &ReferenceData) -> Inputs {
        let mut columns: Vec<OutputColumn> = self.names_returned().map(|name| OutputColumn { name, data_type: DataType::Null }).collect();
        for _ in 0..4 {
            let inputs = inputs.clone().with_earlier_columns(&self.parsed.name, &columns);
            match check::output_columns(&self.parsed.query, reference, &inputs).await {
                Some(found) if found == columns => break,
                Some(found) => columns = found,
                None => break,
            }
        }
        inputs.with_earlier_columns(&self.parsed.name, &columns)
    }

    /// Names of the columns that the query returns, as it writes them.
    fn names_returned(&self) -> impl Iterator<Item = String> {
        let mut body = self.parsed.query.body.as_ref();
        while let SetExpr::SetOperation { left, .. } = body {
            body = left;
        }
        let items = if let SetExpr::Select(select) = body { select.projection.as_slice() } else { &[] };
        items.iter().filter_map(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } => Some(alias.value.to_lowercase()),
            SelectItem::UnnamedExpr(Expr::Identifier(name)) => Some(name.value.to_lowercase()),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(|name| name.value.to_lowercase()),
            _ => None,
        })
    }

    /// What the options promise must be there, and what the query reads must be promised.
    fn check_options(&self, names: &BTreeSet<String>, reference: &ReferenceData, usage: &UsageSchema, diagnostics: &mut Diagnostics) {
        let options = &self.parsed.options;
        let mut error = |code, place, message: String, help: &str| {
            let diagnostic = Diagnostic::error(code, &self.file, &self.text, place, message);
            diagnostics.push(if help.is_empty() { diagnostic } else { diagnostic.help(help) });
        };
        let columns = usage.stored().fields().iter().map(|field| field.name().as_str());
        for column in &options.carry {
            if !columns.clone().any(|known| known == column) {
                let hint = did_you_mean(column, columns.clone());
                error("carry", None, format!("carry names `{column}`, which is no column of usage{hint}"), "");
            }
        }
        let reads_opening = self.rewritten.tables.iter().any(|table| table == "opening");
        if reads_opening && options.carry.is_empty() {
            let help = "add carry = 'subject, meter': opening then holds the last event of each before the window";
            error("carry-missing", None, "`opening` is read, but the rule has no carry".to_owned(), help);
        }
        if !options.carry.is_empty() && !reads_opening {
            error("carry-unused", None, "the rule has carry, but does not read `opening`".to_owned(), "read opening, or take carry out");
        }
        for (rule, place) in &self.rewritten.earlier {
            if !names.contains(rule) {
                let hint = did_you_mean(rule, names.iter().map(String::as_str));
                error("earlier-unknown", *place, format!("earlier.{rule}: there is no rule `{rule}`{hint}"), "");
            }
            if options.history.is_none() {
                let help = "add history = '11 windows': how far back it reads";
                error("history-missing", *place, format!("`earlier.{rule}` is read, but the rule has no history"), help);
            }
        }
        if options.history.is_some() && self.rewritten.earlier.is_empty() {
            let help = "read earlier.NAME, or take history out";
            error("history-unused", None, "the rule has history, but reads no charges of earlier windows".to_owned(), help);
        }
        if self.rewritten.tables.contains(&self.parsed.name) {
            let help = format!("charges of its earlier windows are `earlier.{}`, with history = '1 window'", self.parsed.name);
            error("rule-circle", None, format!("rule `{}` reads its own charges of the same window", self.parsed.name), &help);
        }
        if options.window == WindowSpec::BillingPeriod {
            if reference.billing_periods().is_none() {
                let help = "give reference/contracts.csv the columns contract_id, subject, anchor_day (integer), valid_from, valid_to and, if wanted, timezone";
                error("billing-period", None, "the project has no contracts with billing periods".to_owned(), help);
            }
            if !options.carry.is_empty() && !options.carry.iter().any(|column| column == "subject") {
                error("carry", None, "in billing periods carry must name subject, which belongs to the contract".to_owned(), "");
            }
        } else if options.effective_to.is_none() && options.window.window_of(options.effective_from).is_ok_and(|window| window.start != options.effective_from) {
            diagnostics.push(
                Diagnostic::error("effective-from", &self.file, &self.text, None, "effective_from lies inside a window; that window is not rated")
                    .warning(),
            );
        }
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Hash of a rule's text, of the functions that it can call, and of the rules that it reads.
pub(crate) fn version(text: &str, reads: &[&Rule]) -> String {
    let mut hash = Sha256::new();
    hash.update(FUNCTIONS_VERSION);
    hash.update([0]);
    hash.update(text);
    for rule in reads {
        hash.update([0]);
        hash.update(&rule.version);
    }
    hex::encode(&hash.finalize()[..8])
}

//! A rule project: `rules/*.sql` and `reference/`, checked as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::DataType;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratemill_schemas::nearest::did_you_mean;
use ratemill_schemas::{UsageSchema, WindowSpec, windows};
use sha2::{Digest, Sha256};
use sqlparser::ast::{Expr, Query, SelectItem, SetExpr};

use crate::as_of::{self, Rewritten};
use crate::check::{self, Reading, Written};
use crate::diagnostics::{Diagnostic, Diagnostics, Place};
use crate::functions::FUNCTIONS_VERSION;
use crate::inputs::{self, Inputs};
use crate::limits;
use crate::reference::{ReferenceData, TableChanges, Times};
use crate::rule::{OutputColumn, Reach, Rule};
use crate::source::Source;
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
                let (mut paths, folders): (Vec<_>, Vec<_>) = entries.flatten().map(|entry| entry.path()).partition(|path| !path.is_dir());
                for folder in folders {
                    let name = format!("{shown}/rules/{}", folder.file_name().unwrap_or_default().to_string_lossy());
                    let message = "is a folder; rules are files of rules/ itself";
                    diagnostics.push(Diagnostic::error("rule-file", &name, "", None, message));
                }
                paths.retain(|path| path.extension().is_some_and(|e| e == "sql"));
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
        let mut parsed_rules = Vec::new();
        let mut names = BTreeSet::new();
        for (file, text) in files {
            if let Some(excess) = limits::text(&file, &text) {
                diagnostics.push(excess);
                continue;
            }
            let source = Source::new(file, text);
            let Some(parsed) = statement::parse(&source, &mut diagnostics) else { continue };
            if let Some(excess) = limits::query(&parsed.query, &source) {
                diagnostics.push(excess);
                continue;
            }
            if reference.table(&parsed.name).is_some() || TAKEN.contains(&parsed.name.as_str()) {
                let message = format!("`{}` is a table already", parsed.name);
                diagnostics.push(source.error("rule-name", parsed.name_place, message).help("give the rule another name"));
                continue;
            }
            names.insert(parsed.name.clone());
            parsed_rules.push((source, parsed));
        }
        let mut drafts = Vec::new();
        for (source, parsed) in parsed_rules {
            let name = parsed.name.clone();
            match Draft::read(source, parsed, &names, &reference, &usage, &mut diagnostics) {
                Some(draft) => drafts.push(draft),
                None => drafts.retain(|reader: &Draft| !reader.reads(&names).contains(&name)),
            }
        }
        // Readers of a rule that is wrong would only repeat it.
        let known: BTreeSet<String> = drafts.iter().map(|draft| draft.parsed.name.clone()).collect();
        drafts.retain(|draft| draft.reads(&names).is_subset(&known));
        let mut rules: Vec<Rule> = Vec::new();
        let mut written = BTreeMap::new();
        // Upstream first; what is left in the end reads itself in a circle.
        while !drafts.is_empty() {
            let waiting: BTreeSet<String> = drafts.iter().map(|draft| draft.parsed.name.clone()).collect();
            let (ready, rest): (Vec<Draft>, Vec<Draft>) = drafts.into_iter().partition(|draft| draft.reads(&names).is_disjoint(&waiting));
            if ready.is_empty() {
                for draft in &rest {
                    let read = draft.reads(&names);
                    let message = format!("rule `{}` reads itself through {}", draft.parsed.name, listed(read.iter()));
                    let place = read
                        .iter()
                        .find_map(|name| draft.source.words(None, &["FROM"]).and_then(|from| draft.source.words(Some(from), &[name])));
                    let help = "charges of the same window cannot depend on themselves; earlier.NAME reads those of earlier windows";
                    diagnostics.push(draft.source.error("rule-circle", place, message).help(help));
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
                let before = diagnostics.errors();
                let mut reading = draft.reading(&names, &reference, &mut diagnostics);
                let checked = check::output(&draft.written, &draft.parsed.query, scans, &upstream, &mut reading).await;
                check::upstream(&draft.written, &draft.parsed.places, &rules, &mut reading);
                let Some(checked) = checked.filter(|_| diagnostics.errors() == before) else {
                    // Readers would only repeat what is wrong here.
                    names.remove(&draft.parsed.name);
                    drafts.retain(|reader| !reader.rewritten.tables.contains(&draft.parsed.name));
                    continue;
                };
                let Draft { source, parsed, written: query, rewritten } = draft;
                let kept = Written { source: source.clone(), places: parsed.places.clone(), query };
                written.insert(source.file.clone(), kept);
                rules.push(upstream.rule(source.file, source.text, parsed, rewritten, checked, &rules));
            }
        }
        check::across(&rules, &written, &mut diagnostics);
        diagnostics.deduplicate();
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

    /// The reference tables that the charges of `rule` depend on, by itself or through the rules that it reads: where each is
    /// as it was, so is every charge.
    #[must_use]
    pub fn reference_tables(&self, rule: &Rule) -> BTreeSet<String> {
        let mut tables: BTreeSet<String> = self.with_upstream(rule).flat_map(|rule| rule.tables.iter().cloned()).collect();
        // What is no reference table now may have been one.
        tables.retain(|table| !TAKEN.contains(&table.as_str()) && !self.rules.iter().any(|rule| rule.name == *table));
        tables
    }

    /// The times at which changed reference tables touch the charges of `rule`: a window that has none of them is charged as
    /// before.
    #[must_use]
    pub fn touched(&self, rule: &Rule, changes: &TableChanges) -> Times {
        let mut touched = Times::default();
        for read in self.with_upstream(rule) {
            if changes.keys().any(|table| read.tables.contains(table) && !read.as_of_usage.contains(table)) {
                return Times::always();
            }
            for (_, change) in changes.iter().filter(|(table, _)| read.as_of_usage.contains(*table)) {
                touched.add(if read.sees_validity { &change.rows } else { &change.contents });
            }
        }
        if rule.reach == Reach::Onward { touched.onward() } else { touched }
    }

    /// A rule, and every version of the rules that it reads, itself or through others.
    fn with_upstream<'p>(&'p self, rule: &'p Rule) -> impl Iterator<Item = &'p Rule> {
        let mut read = BTreeSet::new();
        let mut next: Vec<&String> = rule.upstream.iter().chain(&rule.earlier).collect();
        while let Some(name) = next.pop() {
            if read.insert(name) {
                next.extend(
                    self.rules.iter().filter(|other| other.name == *name).flat_map(|other| other.upstream.iter().chain(&other.earlier)),
                );
            }
        }
        std::iter::once(rule).chain(self.rules.iter().filter(move |other| read.contains(&other.name)))
    }

    /// The versions of all rules and of the reference data as one text: two projects of one fingerprint charge the same.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.reference.version());
        for rule in &self.rules {
            for part in [&rule.name, &rule.version] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hex::encode(&hash.finalize()[..8])
    }
}

/// Says an error: code, place, message and help.
type Say<'a> = dyn FnMut(&'static str, Option<Place>, String, &str) + 'a;

/// Tables that no rule can be called after.
const TAKEN: [&str; 5] = ["usage", "opening", "billing_window", "charges", "earlier"];

/// A rule that is parsed, but not yet checked against its inputs.
struct Draft {
    source: Source,
    parsed: ParsedRule,
    /// The query before it was rewritten.
    written: Box<Query>,
    rewritten: Rewritten,
}

impl Draft {
    /// Checks what the text alone shows; `None` when something is wrong.
    fn read(
        source: Source,
        mut parsed: ParsedRule,
        names: &BTreeSet<String>,
        reference: &ReferenceData,
        usage: &UsageSchema,
        diagnostics: &mut Diagnostics,
    ) -> Option<Self> {
        let before = diagnostics.errors();
        let written = parsed.query.clone();
        check::query(&written, &mut Reading { source: &source, reference, rules: names, options: &parsed.options, diagnostics });
        if diagnostics.errors() > before {
            return None;
        }
        let rewritten = as_of::rewrite(&mut parsed.query, reference, names, &parsed.options, &source, diagnostics);
        let draft = Self { source, parsed, written, rewritten };
        draft.check_options(names, reference, usage, diagnostics);
        (diagnostics.errors() == before).then_some(draft)
    }

    fn reading<'a>(&'a self, rules: &'a BTreeSet<String>, reference: &'a ReferenceData, diagnostics: &'a mut Diagnostics) -> Reading<'a> {
        Reading { source: &self.source, reference, rules, options: &self.parsed.options, diagnostics }
    }

    /// The other rules whose charges it reads.
    fn reads(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        let earlier = self.rewritten.earlier.iter().map(|(rule, _)| rule).filter(|rule| **rule != self.parsed.name);
        let tables = self.rewritten.tables.iter().filter(|table| **table != self.parsed.name);
        tables.chain(earlier).filter(|table| names.contains(*table)).cloned().collect()
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
        let (options, places) = (&self.parsed.options, &self.parsed.places);
        let mut error = |code, place, message: String, help: &str| {
            let diagnostic = self.source.error(code, place, message);
            diagnostics.push(if help.is_empty() { diagnostic } else { diagnostic.help(help) });
        };
        self.check_carry(usage, &mut error);
        for (rule, place) in &self.rewritten.earlier {
            if !names.contains(rule) {
                let hint = did_you_mean(rule, names.iter().map(String::as_str));
                error(
                    "earlier-unknown",
                    *place,
                    format!("there is no rule `{rule}`{hint}"),
                    "earlier.NAME are the charges of a rule in earlier windows",
                );
            }
            if options.history.is_none() {
                let help = "add history = '11 windows': how far back it reads";
                error("history-missing", *place, format!("`earlier.{rule}` is read, but the rule has no history"), help);
            }
        }
        if options.history.is_some() && self.rewritten.earlier.is_empty() {
            let help = "read earlier.NAME, or take history out";
            error(
                "history-unused",
                places.key("history"),
                "the rule has history, but reads no charges of earlier windows".to_owned(),
                help,
            );
        }
        if self.rewritten.tables.contains(&self.parsed.name) {
            let help = format!("charges of its earlier windows are `earlier.{}`, with history = '1 window'", self.parsed.name);
            let place = self.source.words(None, &["FROM"]).and_then(|from| self.source.words(Some(from), &[&self.parsed.name]));
            error("rule-circle", place, format!("rule `{}` reads its own charges of the same window", self.parsed.name), &help);
        }
        if options.window == WindowSpec::BillingPeriod && reference.billing_periods().is_none() {
            let help = "give reference/contracts.csv the columns contract_id, subject, anchor_day (integer), valid_from, valid_to and, if wanted, timezone";
            error("billing-period", places.value("window"), "the project has no contracts with billing periods".to_owned(), help);
        }
        if options.window != WindowSpec::BillingPeriod {
            self.check_bounds(diagnostics);
        }
    }

    fn check_carry(&self, usage: &UsageSchema, error: &mut Say<'_>) {
        let (options, places) = (&self.parsed.options, &self.parsed.places);
        let schema = inputs::without_arrival(usage.stored());
        for column in &options.carry {
            let names = schema.fields().iter().map(|field| field.name().as_str());
            match schema.field_with_name(column) {
                Err(_) => {
                    let message = format!("carry names `{column}`, which is no column of usage{}", did_you_mean(column, names));
                    error("carry", places.value("carry"), message, "write carry = 'subject, meter'");
                }
                Ok(field) => {
                    let no_key = matches!(column.as_str(), "id" | "time" | "end" | "attributes")
                        || matches!(field.data_type(), DataType::Decimal128(..));
                    if no_key {
                        let message = format!("`{column}` is no key: nearly every event would have its own");
                        error("carry", places.value("carry"), message, "write carry = 'subject, meter'");
                    }
                }
            }
        }
        let reads_opening = self.rewritten.tables.iter().any(|table| table == "opening");
        if reads_opening && options.carry.is_empty() {
            let help = "add carry = 'subject, meter': opening then holds the last event of each before the window";
            let place = self.source.words(None, &["opening"]);
            error("carry-missing", place, "`opening` is read, but the rule has no carry".to_owned(), help);
        }
        if !options.carry.is_empty() && !reads_opening {
            let message = "the rule has carry, but does not read `opening`".to_owned();
            error("carry-unused", places.key("carry"), message, "read opening, or take carry out");
        }
        if options.window == WindowSpec::BillingPeriod
            && !options.carry.is_empty()
            && !options.carry.iter().any(|column| column == "subject")
        {
            let message = "in billing periods carry must name subject, which belongs to the contract".to_owned();
            error("carry", places.value("carry"), message, "write carry = 'subject, meter'");
        }
    }

    /// A version begins and ends where windows do.
    fn check_bounds(&self, diagnostics: &mut Diagnostics) {
        let (options, places) = (&self.parsed.options, &self.parsed.places);
        let zone = windows::zone(&options.timezone).unwrap_or(TimeZone::UTC);
        let shown = |instant: i64| {
            let zoned = Timestamp::from_microsecond(instant).map(|instant| instant.to_zoned(zone.clone()));
            match zoned {
                Ok(zoned) if zoned.time() == jiff::civil::Time::midnight() => zoned.date().to_string(),
                Ok(zoned) => zoned.timestamp().to_string(),
                Err(_) => instant.to_string(),
            }
        };
        let mut warn = |name: &'static str, code, message: String, help: String| {
            diagnostics.push(self.source.error(code, places.value(name), message).help(help).warning());
        };
        if let Ok(window) = options.window.window_of(options.effective_from)
            && window.start != options.effective_from
        {
            let message = "effective_from lies inside a window, and that window is not rated".to_owned();
            let help = format!("begin at {}, or at {} for the whole window", shown(window.end), shown(window.start));
            warn("effective_from", "effective-from", message, help);
        }
        if let Some(to) = options.effective_to
            && let Ok(window) = options.window.window_of(to - 1)
            && window.end != to
        {
            let message = format!(
                "effective_to lies inside the window {} to {}, which this version still rates",
                shown(window.start),
                shown(window.end)
            );
            warn("effective_to", "effective-to", message, format!("write {} or {}", shown(window.end), shown(window.start)));
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

//! `ratemill pending`: what published windows would be charged by the present rules and reference data.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Args, ValueEnum};
use ratemill_rules::RuleProject;
use ratemill_schemas::nearest::did_you_mean;
use ratemill_schemas::windows;

use super::{Failure, Project, stop_signal};
use crate::config::Settings;
use crate::epoch::{AmountChange, ChangeScope, PendingChanges, PendingWindow};
use crate::pipeline::{OpenError, open_audit, shown};
use crate::query::QueryError;

/// Customers of a window that are shown without --customers.
const CUSTOMERS_SHOWN: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// Which pending changes.
#[derive(Debug, Args)]
pub(super) struct Scope {
    /// Only windows of this rule, and of rules that read its charges where these change.
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// Only windows that begin on this day (in the invoicing time zone) or instant, or later.
    #[arg(long, value_name = "DATE")]
    from: Option<String>,
    /// Only windows that end on this day or instant, or before.
    #[arg(long, value_name = "DATE")]
    to: Option<String>,
}

impl Scope {
    /// The scope, dates read in the invoicing time zone.
    pub(super) fn read(&self, zone: &str) -> Result<ChangeScope, Failure> {
        let instant =
            |text: &Option<String>| text.as_ref().map(|text| windows::instant_of_day(text, zone)).transpose().map_err(Failure::usage);
        Ok(ChangeScope { rule: self.rule.clone(), from: instant(&self.from)?, to: instant(&self.to)? })
    }

    pub(super) fn check(&self, project: &RuleProject) -> Result<(), Failure> {
        match &self.rule {
            Some(name) if !project.rules.iter().any(|rule| rule.name == *name) => {
                let hint = did_you_mean(name, project.rules.iter().map(|rule| rule.name.as_str()));
                Err(Failure::usage(format!("there is no rule `{name}`{hint}")))
            }
            _ => Ok(()),
        }
    }
}

/// `ratemill pending`
#[derive(Debug, Args)]
pub(super) struct Pending {
    #[command(flatten)]
    project: Project,
    #[command(flatten)]
    scope: Scope,
    /// Show every customer of every window.
    #[arg(long)]
    customers: bool,
    /// How the result is written; JSON has every customer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Pending {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.pending() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn pending(&self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let zone = zone(folder)?;
        let Some(lake) = open_audit(folder, &shown(folder)).await? else {
            return Err(QueryError::Empty(shown(folder)).into());
        };
        self.scope.check(lake.project())?;
        let changes = lake.pending(&self.scope.read(&zone)?).await.map_err(OpenError::from)?;
        match self.format {
            Format::Json => println!("{}", serde_json::to_string_pretty(&changes).map_err(Failure::failed)?),
            Format::Text => {
                print!("{}", text(&changes, if self.customers { usize::MAX } else { CUSTOMERS_SHOWN })?);
                if !changes.windows.is_empty() {
                    println!("digest {}; `ratemill apply --digest {0}` posts exactly this", changes.digest);
                }
            }
        }
        if changes.waiting > 0 {
            eprintln!("{} windows have late usage that is not rated yet; it is rated before a difference is posted", changes.waiting);
        }
        if changes.failures.is_empty() { Ok(()) } else { Err(Failure::rules(changes.failures.join("\n"))) }
    }
}

/// The invoicing time zone of a project.
pub(super) fn zone(folder: &Path) -> Result<String, Failure> {
    Ok(Settings::load_for_reading(folder).map_err(OpenError::from)?.config.billing.timezone)
}

/// Windows, at most so many customers of each, and totals.
pub(super) fn text(changes: &PendingChanges, customers: usize) -> Result<String, Failure> {
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| writeln!(text, "{arguments}").map_err(Failure::failed);
    for window in &changes.windows {
        line(format_args!("{}: {}", place(window), cause(window)))?;
        for change in window.customers.iter().take(customers) {
            line(format_args!("  {}: {}", change.customer_id.as_deref().unwrap_or_default(), amounts(change)))?;
        }
        if window.customers.len() > customers {
            line(format_args!("  and {} more customers; --customers shows them", window.customers.len() - customers))?;
            for total in window.totals().map_err(Failure::failed)? {
                line(format_args!("  together: {}", amounts(&total)))?;
            }
        }
    }
    for total in &changes.totals {
        let of_currency = changes.customers.iter().filter(|change| change.currency == total.currency).count();
        line(format_args!("total of {}: {}", counted(of_currency, "customer"), amounts(total)))?;
    }
    if changes.windows.is_empty() {
        line(format_args!("no pending changes, as of epoch {}", changes.epoch))?;
    }
    let unchanged = changes.unchanged + changes.untouched;
    if unchanged > 0 {
        let untouched = match changes.untouched {
            0 => String::new(),
            untouched => format!(" ({untouched} not even rated: nothing that their rule reads has changed)"),
        };
        line(format_args!("{} of older versions would be charged the same{untouched}", counted(unchanged, "window")))?;
    }
    for held in &changes.held {
        line(format_args!("held: {held} shares usage with a period that is left out; both go together"))?;
    }
    Ok(text)
}

fn place(window: &PendingWindow) -> String {
    let contract = window.contract_id.as_ref().map_or_else(String::new, |contract| format!(" of contract `{contract}`"));
    format!("rule `{}`, window {} to {}{contract}", window.rule, window.window_start, window.window_end)
}

fn cause(window: &PendingWindow) -> String {
    if window.tables.is_empty() { window.cause.clone() } else { format!("{} ({})", window.cause, window.tables.join(", ")) }
}

fn amounts(change: &AmountChange) -> String {
    let currency = &change.currency;
    format!("charged {} {currency}, would be {} {currency}, difference {} {currency}", change.charged, change.would_be, change.difference)
}

fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

//! `ratemill explain`: a rule, or a charge.

mod charge;
mod rule;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// `ratemill explain RULE`, `ratemill explain rule RULE` and `ratemill explain charge ID`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Explain {
    #[command(subcommand)]
    what: Option<What>,
    /// The rule; the same as `explain rule RULE`.
    rule: Option<String>,
    /// The project folder, which holds ratemill.toml.
    #[arg(short = 'C', long = "project", default_value = ".", value_name = "DIR")]
    folder: PathBuf,
    /// How it is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Say what a rule reads, how its windows are evaluated, where its columns come from, and show its plan.
    Rule(rule::ExplainRule),
    /// Rate a charge again with what it was rated with, and show the arguments and steps of its price, its usage events,
    /// reference rows and charges of other rules; exit code 4 where it is not what the ledger has.
    Charge(charge::ExplainCharge),
}

impl Explain {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match (self.what, self.rule) {
            (Some(What::Rule(rule)), _) => rule.run().await,
            (Some(What::Charge(charge)), _) => charge.run().await,
            (None, Some(rule)) => rule::explained(&rule, &self.folder, self.format).await,
            (None, None) => Err(Failure::usage("say what to explain: `ratemill explain rule RULE` or `ratemill explain charge ID`")),
        }
    }
}

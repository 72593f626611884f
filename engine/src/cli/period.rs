//! `ratemill period list` and `close`.

use clap::{Args, Subcommand};

use super::table::{Format, print};
use super::{Failure, Project, with_causes};
use crate::epoch::{Closing, PeriodError, WaitingWindows};
use crate::lake::LakeError;
use crate::log::LogError;
use crate::pipeline::{OpenError, Pipeline, shown};
use crate::query::Reader;

/// Posting months with what they bill, and whether they are closed.
const PERIODS: &str = "SELECT m.period, CASE WHEN c.period IS NULL THEN 'open' ELSE 'closed' END AS state, c.closed_at,
       t.currency, t.customers, t.lines, t.amount, t.billed
FROM (SELECT posting_period AS period FROM invoice_totals UNION SELECT period FROM closed_periods) m
LEFT JOIN closed_periods c ON c.period = m.period
LEFT JOIN (SELECT posting_period, currency, count(DISTINCT customer_id) AS customers, sum(lines) AS lines,
                  sum(amount) AS amount, sum(billed) AS billed
           FROM invoice_totals GROUP BY posting_period, currency) t ON t.posting_period = m.period";

/// `ratemill period …`
#[derive(Debug, Subcommand)]
pub(super) enum Period {
    /// Show the months with what they bill, and which are closed.
    List(List),
    /// Close a month, for good: what is corrected later is posted to the earliest open month.
    Close(Close),
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    project: Project,
    /// How rows are written.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Args)]
pub(super) struct Close {
    /// The month, like 2026-06; months are closed in order.
    #[arg(value_name = "MONTH")]
    month: String,
    #[command(flatten)]
    project: Project,
    /// Close although windows of the month wait for their grace to pass: their charges will be posted to the month after.
    #[arg(long)]
    early: bool,
    /// How the month is written.
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

impl Period {
    pub(super) async fn run(self) -> Result<(), Failure> {
        match self {
            Self::List(list) => {
                let reader = Reader::open(&list.project.folder).await?;
                print(&reader.query(&format!("{PERIODS} ORDER BY m.period, t.currency")).await?, list.format)
            }
            Self::Close(close) => close.run().await,
        }
    }
}

impl Close {
    async fn run(self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let mut pipeline = Pipeline::open(folder, &shown(folder)).await.map_err(|error| self.not_opened(error))?;
        let waiting = if self.early { WaitingWindows::PostLater } else { WaitingWindows::Refuse };
        let outcome = pipeline.epochs.close_period(&self.month, waiting).await;
        let next = pipeline.epochs.next_open();
        pipeline.close().await?;
        match outcome? {
            Closing::Closed => eprintln!("{} is closed; corrections of it are posted to {next}", self.month),
            Closing::AlreadyClosed => eprintln!("{} is closed already; corrections of it are posted to {next}", self.month),
        }
        let reader = Reader::open(folder).await?;
        print(&reader.query(&format!("{PERIODS} WHERE m.period = '{}' ORDER BY t.currency", self.month)).await?, self.format)
    }

    fn not_opened(&self, error: OpenError) -> Failure {
        let is_held = matches!(&error, OpenError::Lake(LakeError::Held(_)) | OpenError::Log(LogError::Locked { .. }));
        let mut failure = Failure::from(error);
        if is_held {
            failure.message.push_str(&format!("; stop the engine, then close {} and start it again", self.month));
        }
        failure
    }
}

impl From<PeriodError> for Failure {
    fn from(error: PeriodError) -> Self {
        match error {
            PeriodError::Unknown(_) => Self::usage(error),
            PeriodError::Epoch(error) => OpenError::from(error).into(),
            other => Self::failed(with_causes(&other)),
        }
    }
}

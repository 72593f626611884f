//! The command line: output on stdout, everything else on stderr, exit codes that mean something.

mod apply;
mod audit;
mod check;
mod demo;
mod explain;
mod init;
mod pending;
mod period;
mod rate;
mod rejected;
mod run;
mod sql;
mod status;
mod table;
mod tap;
mod test;
mod unrated;
mod upkeep;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::lake::LakeError;
use crate::pipeline::OpenError;
use crate::query::QueryError;

/// Usage-billing mediation: capture usage, rate it with SQL, keep charges in an open lake.
///
/// Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 rule errors, 4 test or audit mismatch,
/// 5 lake held by another, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "ratemill", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How much to log on stderr (RUST_LOG overrides): error, warn, info or debug.
    #[arg(long, global = true, default_value = "warn", value_name = "LEVEL")]
    log: String,
    /// How to log.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a business-centre project, send it a month of usage, and show invoices and a correction.
    Demo(demo::Demo),
    /// Make a project to start from.
    Init(init::Init),
    /// Check rules, reference data and configuration.
    Check(check::Check),
    /// Explain a rule (what it reads, how it is evaluated, its plan) or a charge (what it is made of, down to the usage events).
    Explain(explain::Explain),
    /// Rate files once: usage in, charges out.
    Rate(rate::Rate),
    /// List invoicing months, or close one: later corrections of it are posted to the month after.
    #[command(subcommand)]
    Period(period::Period),
    /// Rate every published window afresh and compare with the ledger; reads only, also while an engine runs.
    Audit(audit::Audit),
    /// Show what published windows would be charged by the present rules and reference data; reads only, also while an engine
    /// runs.
    Pending(pending::Pending),
    /// Post what `pending` shows as corrections, here or by the engine that runs.
    Apply(apply::Apply),
    /// Let the running engine read rules and reference data again, as SIGHUP does.
    Reload(apply::Reload),
    /// List usage that nothing charges, with the reason: unknown subject, no contract, no price, no rule; reads only.
    Unrated(unrated::Unrated),
    /// Run the live engine with all connectors.
    Run(run::Run),
    /// Show how far the lake is: owner, last epoch, inputs, watermark, open windows.
    Status(status::Status),
    /// Join small files of the lake's tables, write Delta checkpoints, and remove what nobody needs any more.
    Upkeep(upkeep::Upkeep),
    /// Show usage events, voids and amendments as they are acknowledged, or rejected records, as NDJSON.
    Tap(tap::Tap),
    /// Run the rule tests and audits of a project.
    Test(test::Test),
    /// Query usage, charges, running_charges, rejected, invoice_lines, invoice_totals, closed_periods and reference tables (read-only).
    Sql(sql::Sql),
    /// List rejected records, or send them again after their cause was mended.
    #[command(subcommand)]
    Rejected(rejected::Rejected),
}

/// How a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn failed(message: impl ToString) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    pub(crate) fn usage(message: impl ToString) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    pub(crate) fn rules(message: impl ToString) -> Self {
        Self { code: 3, message: message.to_string() }
    }

    pub(crate) fn mismatch(message: impl ToString) -> Self {
        Self { code: 4, message: message.to_string() }
    }

    fn interrupted() -> Self {
        Self { code: 130, message: "interrupted".to_owned() }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let code = match &error {
            OpenError::Config(_) | OpenError::Connector(_) => 2,
            OpenError::Rules(_) | OpenError::Epoch(crate::epoch::EpochError::Version { .. }) => 3,
            OpenError::Lake(LakeError::Held(_) | LakeError::Fenced { .. }) | OpenError::Log(crate::log::LogError::Locked { .. }) => 5,
            OpenError::Lake(LakeError::Url { .. }) => 2,
            _ => 1,
        };
        Self { code, message: with_causes(&error) }
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        let code = if matches!(error, QueryError::Config(_)) { 2 } else { 1 };
        Self { code, message: with_causes(&error) }
    }
}

/// The message and those of its causes that it does not say itself.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message.push_str(&format!(": {text}"));
        }
        cause = inner.source();
    }
    message
}

/// A project folder given on the command line.
#[derive(Debug, Clone, clap::Args)]
struct Project {
    /// The project folder, which holds ratemill.toml.
    #[arg(short = 'C', long = "project", default_value = ".", value_name = "DIR")]
    folder: PathBuf,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    crate::failpoint::arm();
    // A reader that has seen enough (`ratemill explain … | head`) is no fault of ours.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.to_string().contains("failed printing to stdout") {
            std::process::exit(141);
        }
        report(panic);
    }));
    let cli = Cli::parse();
    start_logging(&cli);
    // One crypto provider for the whole process, whatever the libraries bring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_stack_size(16 << 20).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Demo(demo) => demo.run().await,
            Command::Init(init) => init.run(),
            Command::Check(check) => check.run().await,
            Command::Explain(explain) => explain.run().await,
            Command::Rate(rate) => rate.run().await,
            Command::Period(period) => period.run().await,
            Command::Audit(audit) => audit.run().await,
            Command::Pending(pending) => pending.run().await,
            Command::Apply(apply) => apply.run().await,
            Command::Reload(reload) => reload.run().await,
            Command::Unrated(unrated) => unrated.run().await,
            Command::Run(run) => run.run().await,
            Command::Test(test) => test.run().await,
            Command::Sql(sql) => sql.run().await,
            Command::Status(status) => status.run().await,
            Command::Upkeep(upkeep) => upkeep.run().await,
            Command::Tap(tap) => tap.run().await,
            Command::Rejected(rejected) => rejected.run().await,
        }
    });
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let prefix = if failure.message.starts_with("error") { "" } else { "error: " };
            eprintln!("{prefix}{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn start_logging(cli: &Cli) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new(format!("{},deltalake_core=error,buoyant_kernel=error,rumqttc=error", cli.log))
    });
    // A log that cannot be written, say because its disk is full, is no reason to stop: the complaint would panic.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let started = match cli.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        eprintln!("warning: no logging: {error}");
    }
}

/// Installs the process-wide metrics recorder.
fn start_metrics() -> Result<PrometheusHandle, Failure> {
    let handle = PrometheusBuilder::new().install_recorder().map_err(Failure::failed)?;
    metrics::gauge!("ratemill_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// Ends when the user or the system asks the process to stop.
async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let terminate = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminate => {}
    }
}

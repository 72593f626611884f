//! `ratemill apply` and `ratemill reload`: what the owner of the lake does, be it this process or the engine that runs.

use std::path::Path;

use clap::Args;
use ratemill_rules::RuleProject;
use ratemill_schemas::time::format_instant;
use serde_json::{Value, json};

use super::pending::{Format, Scope, text, zone};
use super::{Failure, Project, stop_signal};
use crate::config::Settings;
use crate::epoch::{ApplyError, ApplyRequest, ChangeScope, Finalize};
use crate::lake::{Lake, LakeError, owner};
use crate::live::Posted;
use crate::log::LogError;
use crate::pipeline::{OpenError, Pipeline, shown};
use crate::pulse::engine_url;

/// The environment variable with the API key of commands that are sent to a running engine.
const KEY: &str = "RATEMILL_KEY";

/// The engine that a command is sent to.
#[derive(Debug, Args)]
struct Engine {
    /// The running engine to send it to, like http://127.0.0.1:8080; by default the one that has this project's log. A
    /// listener with keys wants one with `operate = true`, in the environment variable RATEMILL_KEY.
    #[arg(long = "engine", value_name = "URL")]
    url: Option<String>,
}

/// `ratemill apply`
#[derive(Debug, Args)]
pub(super) struct Apply {
    #[command(flatten)]
    project: Project,
    #[command(flatten)]
    scope: Scope,
    /// Post only if the difference is still the one that `ratemill pending` showed with this digest.
    #[arg(long, value_name = "DIGEST")]
    digest: Option<String>,
    #[command(flatten)]
    engine: Engine,
    /// How the result is written; JSON has every customer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Apply {
    pub(super) async fn run(self) -> Result<(), Failure> {
        tokio::select! {
            outcome = self.apply() => outcome,
            () = stop_signal() => Err(Failure::interrupted()),
        }
    }

    async fn apply(&self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let scope = self.scope.read(&zone(folder)?)?;
        let posted = match &self.engine.url {
            Some(url) => self.send(url, &scope).await?,
            None => match Pipeline::open(folder, &shown(folder)).await {
                Ok(pipeline) => self.post(pipeline, scope).await?,
                Err(error) => self.send(&living_engine(folder, error).await?, &scope).await?,
            },
        };
        self.print(&posted)
    }

    /// Posts as the owner of the lake.
    async fn post(&self, mut pipeline: Pipeline, scope: ChangeScope) -> Result<Posted, Failure> {
        self.scope.check(pipeline.epochs.project())?;
        let request = ApplyRequest { scope, digest: self.digest.clone(), project: None };
        let outcome = pipeline.epochs.apply(&request, Finalize::Late).await;
        pipeline.close().await?;
        Ok(outcome?.into())
    }

    /// Has the engine post, if it runs with the project of this folder.
    async fn send(&self, url: &str, scope: &ChangeScope) -> Result<Posted, Failure> {
        let folder = &self.project.folder;
        let settings = Settings::load_for_reading(folder).map_err(OpenError::from)?;
        let (project, _) = RuleProject::load(folder, &shown(folder), settings.schema).await.map_err(OpenError::Rules)?;
        self.scope.check(&project)?;
        let body = json!({
            "rule": scope.rule,
            "from": scope.from.map(format_instant),
            "to": scope.to.map(format_instant),
            "digest": self.digest,
            "project": project.fingerprint(),
        });
        let answer = send(url, "/v1/apply", &body).await?;
        serde_json::from_value(answer).map_err(|error| Failure::failed(format!("the engine's answer cannot be read: {error}")))
    }

    fn print(&self, posted: &Posted) -> Result<(), Failure> {
        if self.format == Format::Json {
            println!("{}", serde_json::to_string_pretty(posted).map_err(Failure::failed)?);
            return Ok(());
        }
        print!("{}", text(&posted.changes, usize::MAX)?);
        match posted.posted_epoch {
            Some(epoch) if posted.rows_posted > 0 => println!("posted {} ledger rows in epoch {epoch}", posted.rows_posted),
            Some(epoch) => println!("nothing to post; late usage is rated with the present versions from epoch {epoch} on"),
            None => println!("nothing to post"),
        }
        Ok(())
    }
}

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        match error {
            ApplyError::Differs { .. } => Self::mismatch(error),
            ApplyError::Failing(_) => Self::rules(error),
            ApplyError::OtherProject => Self::failed(error),
            ApplyError::Epoch(error) => OpenError::from(error).into(),
        }
    }
}

/// `ratemill reload`
#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    project: Project,
    #[command(flatten)]
    engine: Engine,
}

impl Reload {
    pub(super) async fn run(self) -> Result<(), Failure> {
        let folder = &self.project.folder;
        let url = match self.engine.url {
            Some(url) => url,
            None => {
                url_of(folder).await?.ok_or_else(|| Failure::failed("no engine with an HTTP listener runs on this project's log here"))?
            }
        };
        let answer = send(&url, "/v1/reload", &json!({})).await?;
        let names = |field: &str| -> Vec<&str> { answer[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect() };
        for warning in names("warnings") {
            eprintln!("{warning}");
        }
        match (names("rules"), names("tables")) {
            (rules, tables) if rules.is_empty() && tables.is_empty() => println!("rules and reference data are as they were"),
            (rules, tables) => {
                let part =
                    |what: &str, names: &[&str]| if names.is_empty() { String::new() } else { format!("; {what}: {}", names.join(", ")) };
                println!("reloaded{}{}", part("rules", &rules), part("reference tables", &tables));
            }
        }
        if answer["restart_needed"] == true {
            eprintln!("warning: ratemill.toml was changed, too; it is read at a start only");
        }
        Ok(())
    }
}

/// The engine that holds the lake, for an `error` that says that it is held; else the error.
async fn living_engine(folder: &Path, error: OpenError) -> Result<String, Failure> {
    let is_held = matches!(&error, OpenError::Lake(LakeError::Held(_)) | OpenError::Log(LogError::Locked { .. }));
    if !is_held {
        return Err(error.into());
    }
    let url = url_of(folder).await?;
    url.ok_or_else(|| {
        let mut failure = Failure::from(error);
        failure.message.push_str("; send it to that engine by --engine URL, or stop it first");
        failure
    })
}

/// Where the engine listens that has this project's log and lake.
async fn url_of(folder: &Path) -> Result<Option<String>, Failure> {
    let settings = Settings::load_for_reading(folder).map_err(OpenError::from)?;
    let lake = Lake::open(&settings.config.lake.url, folder).map_err(OpenError::from)?;
    let holder = owner::holder(&lake).await.map_err(OpenError::from)?.filter(|holder| !holder.released);
    Ok(holder.and_then(|holder| engine_url(&settings.log_folder, holder.generation)))
}

/// Sends a command to a running engine; returns its answer.
async fn send(url: &str, path: &str, body: &Value) -> Result<Value, Failure> {
    let client = reqwest::Client::new();
    let request = client.post(format!("{}{path}", url.trim_end_matches('/'))).json(body);
    let request = match std::env::var(KEY) {
        Ok(key) => request.bearer_auth(key),
        Err(_) => request,
    };
    let unreachable = |error: reqwest::Error| Failure { code: 5, message: format!("the engine at {url} cannot be reached: {error}") };
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    let answer: Value = response.json().await.map_err(unreachable)?;
    if status.is_success() {
        return Ok(answer);
    }
    let message = answer["detail"].as_str().map_or_else(|| format!("the engine answered {status}"), str::to_owned);
    Err(match status.as_u16() {
        400 | 401 | 403 => Failure::usage(message),
        412 => Failure::mismatch(message),
        422 => Failure::rules(message),
        _ => Failure::failed(message),
    })
}

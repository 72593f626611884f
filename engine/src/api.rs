//! The HTTP surface: usage in; running charges, status, health and metrics out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use ratemill_connectors::http::{ApiKeys, EventsState, Problem, router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::epoch::{ApplyRequest, ChangeScope, RunningQuestion, Unanswered};
use crate::live::{Command, Refusal};
use crate::pulse::{LiveStatus, Vitals};
use crate::query::with_exact_texts;

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// What health and metrics are answered from.
#[derive(Debug, Clone)]
pub struct Health {
    /// Recovery is over and the engine takes usage.
    pub ready: Arc<AtomicBool>,
    /// Prometheus.
    pub metrics: PrometheusHandle,
}

/// Who may ask, and where questions go.
#[derive(Debug, Clone)]
pub struct Questions {
    /// To the epochs.
    pub queue: mpsc::Sender<RunningQuestion>,
    /// The listener's keys.
    pub keys: ApiKeys,
    /// Names of the rules.
    pub rules: watch::Receiver<Vec<String>>,
    /// What the engine knows of itself.
    pub vitals: Vitals,
}

/// Who may operate the engine, and where commands go.
#[derive(Debug, Clone)]
pub struct Operations {
    /// To the epochs.
    pub queue: mpsc::Sender<Command>,
    /// The listener's keys.
    pub keys: ApiKeys,
}

/// The routes: `POST /v1/events`, `GET /v1/running-charges`, `GET /v1/status`, `POST /v1/apply`, `POST /v1/reload`, `/healthz`,
/// `/readyz`, `/metrics`.
pub fn routes(events: Arc<EventsState>, health: Health, questions: Questions, operations: Operations) -> Router {
    let charges = Router::new().route("/v1/running-charges", get(running_charges)).route("/v1/status", get(status)).with_state(questions);
    let operations = Router::new().route("/v1/apply", post(apply)).route("/v1/reload", post(reload)).with_state(operations);
    Router::new()
        .merge(charges)
        .merge(operations)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
        .merge(router(events))
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed",
                "POST goes to /v1/events, /v1/apply and /v1/reload; the other paths are read with GET",
            )
        })
        .fallback(|| async {
            Problem::new(
                StatusCode::NOT_FOUND,
                "Not found",
                "the paths are POST /v1/events, GET /v1/running-charges, GET /v1/status, POST /v1/apply, POST /v1/reload, /healthz, /readyz and /metrics",
            )
        })
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    if health.ready.load(Ordering::Acquire) { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

/// What is asked of running charges.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunningQuery {
    rule: Option<String>,
    customer_id: Option<String>,
}

/// Charges of open windows as NDJSON, decimals as exact texts.
async fn running_charges(
    State(questions): State<Questions>,
    headers: HeaderMap,
    query: Result<Query<RunningQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Problem> {
    questions.keys.check_reading(&headers)?;
    let Query(query) =
        query.map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "Unknown parameter", "the parameters are rule and customer_id"))?;
    let known = questions.rules.borrow().clone();
    if let Some(rule) = query.rule.as_ref().filter(|rule| !known.contains(rule)) {
        let hint = ratemill_schemas::nearest::did_you_mean(rule, known.iter().map(String::as_str));
        return Err(Problem::new(StatusCode::NOT_FOUND, "Unknown rule", format!("there is no rule `{rule}`{hint}")));
    }
    let unavailable = |detail: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Not available", detail).retry_after(1);
    let (answer, answered) = oneshot::channel();
    let question = RunningQuestion { rule: query.rule, customer: query.customer_id.clone(), answer };
    questions.queue.try_send(question).map_err(|_| unavailable("too many questions wait for the epoch; ask again".to_owned()))?;
    let rows = match tokio::time::timeout(ANSWER, answered).await {
        Ok(Ok(Ok(rows))) => rows,
        Ok(Ok(Err(Unanswered::Later(detail)))) => return Err(unavailable(detail)),
        Ok(Ok(Err(Unanswered::Failed(detail)))) => {
            return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Charges cannot be evaluated", detail));
        }
        Ok(Err(_)) => return Err(unavailable("the engine stops".to_owned())),
        Err(_) => return Err(unavailable("an epoch takes long; ask again".to_owned())),
    };
    let body = ndjson(&rows, query.customer_id.as_deref())
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Charges cannot be written", error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// What the engine knows of itself; to be read by who may read charges.
async fn status(State(questions): State<Questions>, headers: HeaderMap) -> Result<axum::Json<LiveStatus>, Problem> {
    questions.keys.check_reading(&headers)?;
    Ok(axum::Json(questions.vitals.status()))
}

/// What is asked of pending changes; everything may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ApplyBody {
    rule: Option<String>,
    /// RFC 3339.
    from: Option<String>,
    to: Option<String>,
    digest: Option<String>,
    project: Option<String>,
}

impl ApplyBody {
    fn request(self) -> Result<ApplyRequest, Problem> {
        let instant = |text: Option<String>| {
            let wrong = |text: &str| {
                Problem::new(StatusCode::BAD_REQUEST, "No instant", format!("`{text}` is no instant; write it like 2026-06-01T00:00:00Z"))
            };
            text.map(|text| ratemill_schemas::time::parse_instant(&text).map_err(|_| wrong(&text))).transpose()
        };
        let scope = ChangeScope { rule: self.rule, from: instant(self.from)?, to: instant(self.to)? };
        Ok(ApplyRequest { scope, digest: self.digest, project: self.project })
    }
}

/// Posts pending changes; the answer is what was posted.
async fn apply(
    State(operations): State<Operations>,
    headers: HeaderMap,
    body: Result<Json<ApplyBody>, JsonRejection>,
) -> Result<Response, Problem> {
    operations.keys.check_operating(&headers)?;
    let request = json(body)?.request()?;
    let (answer, answered) = oneshot::channel();
    done(&operations, Command::Apply { request, answer }, answered).await
}

/// Nothing, as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// Reads rules and reference data again; the answer is what differs.
async fn reload(
    State(operations): State<Operations>,
    headers: HeaderMap,
    body: Result<Json<Empty>, JsonRejection>,
) -> Result<Response, Problem> {
    operations.keys.check_operating(&headers)?;
    json(body)?;
    let (answer, answered) = oneshot::channel();
    done(&operations, Command::Reload { answer }, answered).await
}

/// The body. Its content type must be JSON, which no page of another site can send from a browser without being asked first.
fn json<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Problem> {
    body.map(|Json(body)| body).map_err(|rejection| {
        let detail = format!("{}; send a JSON object, {{}} at least, with `Content-Type: application/json`", rejection.body_text());
        Problem::new(rejection.status(), "Unreadable body", detail)
    })
}

/// Has a command done between two epochs, however long that takes.
async fn done<T: serde::Serialize>(
    operations: &Operations,
    command: Command,
    answered: oneshot::Receiver<Result<T, Refusal>>,
) -> Result<Response, Problem> {
    let unavailable = |detail: &str| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Not available", detail).retry_after(1);
    operations.queue.try_send(command).map_err(|_| unavailable("too many commands wait for the epoch; send it again"))?;
    let outcome = answered.await.map_err(|_| unavailable("the engine stops"))?;
    outcome.map(|done| Json(done).into_response()).map_err(|refusal| {
        let (status, title) = match &refusal {
            Refusal::Differs(_) => (StatusCode::PRECONDITION_FAILED, "Another difference"),
            Refusal::OtherProject(_) => (StatusCode::CONFLICT, "Another project"),
            Refusal::Rules(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Wrong rules"),
            Refusal::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "Failed"),
        };
        Problem::new(status, title, refusal.to_string())
    })
}

fn ndjson(batches: &[RecordBatch], customer: Option<&str>) -> Result<Vec<u8>, arrow::error::ArrowError> {
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    for batch in batches {
        let mut batch = with_exact_texts(batch)?;
        if let (Some(customer), Some(customers)) = (customer, batch.column_by_name("customer_id")) {
            let wanted = customers.as_string::<i32>().iter().map(|found| Some(found == Some(customer))).collect();
            batch = arrow::compute::filter_record_batch(&batch, &wanted)?;
        }
        writer.write(&batch)?;
    }
    writer.finish()?;
    Ok(writer.into_inner())
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], health.metrics.render())
}

/// Listens on `address`; port 0 takes a free one.
///
/// # Errors
/// When the address cannot be had.
pub async fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

/// Serves until `stop`; calls under way are finished.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, routes: Router, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

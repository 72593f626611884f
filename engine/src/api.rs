//! The HTTP surface: usage in; running charges, health and metrics out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use ratemill_connectors::http::{ApiKeys, EventsState, Problem, router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::query::with_exact_texts;

/// Longest wait for an answer from between two epochs.
const ANSWER: Duration = Duration::from_secs(30);

/// What health and metrics are answered from.
#[derive(Debug, Clone)]
pub struct Health {
    /// Recovery is over and the engine takes usage.
    pub ready: Arc<AtomicBool>,
    /// Prometheus.
    pub metrics: PrometheusHandle,
}

/// A question for running charges, answered between epochs.
#[derive(Debug)]
pub struct RunningQuestion {
    /// One rule; `None` is all.
    pub rule: Option<String>,
    /// The charges, or what failed.
    pub answer: oneshot::Sender<Result<Vec<RecordBatch>, String>>,
}

/// Who may ask, and where questions go.
#[derive(Debug, Clone)]
pub struct Questions {
    /// To the epochs.
    pub queue: mpsc::Sender<RunningQuestion>,
    /// The listener's keys.
    pub keys: ApiKeys,
    /// Names of the rules.
    pub rules: Vec<String>,
}

/// The routes: `POST /v1/events`, `GET /v1/running-charges`, `/healthz`, `/readyz`, `/metrics`.
pub fn routes(events: Arc<EventsState>, health: Health, questions: Questions) -> Router {
    let charges = Router::new().route("/v1/running-charges", get(running_charges)).with_state(questions);
    Router::new()
        .merge(charges)
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(health)
        .merge(router(events))
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed",
                "usage is sent with POST /v1/events; the other paths are read with GET",
            )
        })
        .fallback(|| async {
            Problem::new(
                StatusCode::NOT_FOUND,
                "Not found",
                "the paths are POST /v1/events, GET /v1/running-charges, /healthz, /readyz and /metrics",
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
    if let Some(rule) = query.rule.as_ref().filter(|rule| !questions.rules.contains(rule)) {
        let hint = ratemill_schemas::nearest::did_you_mean(rule, questions.rules.iter().map(String::as_str));
        return Err(Problem::new(StatusCode::NOT_FOUND, "Unknown rule", format!("there is no rule `{rule}`{hint}")));
    }
    let unavailable = |detail: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Not available", detail).retry_after(1);
    let (answer, answered) = oneshot::channel();
    let question = RunningQuestion { rule: query.rule, answer };
    questions.queue.try_send(question).map_err(|_| unavailable("too many questions wait for the epoch; ask again".to_owned()))?;
    let rows = match tokio::time::timeout(ANSWER, answered).await {
        Ok(Ok(rows)) => rows.map_err(|detail| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Charges cannot be evaluated", detail))?,
        Ok(Err(_)) => return Err(unavailable("the engine stops".to_owned())),
        Err(_) => return Err(unavailable("an epoch takes long; ask again".to_owned())),
    };
    let body = ndjson(&rows, query.customer_id.as_deref())
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Charges cannot be written", error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
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

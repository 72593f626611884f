//! The HTTP surface: usage in, health and metrics out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use ratemill_connectors::http::{EventsState, Problem, router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What health and metrics are answered from.
#[derive(Debug, Clone)]
pub struct Health {
    /// Recovery is over and the engine takes usage.
    pub ready: Arc<AtomicBool>,
    /// Prometheus.
    pub metrics: PrometheusHandle,
}

/// The routes: `POST /v1/events`, `GET /healthz`, `/readyz`, `/metrics`.
pub fn routes(events: Arc<EventsState>, health: Health) -> Router {
    Router::new()
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
            Problem::new(StatusCode::NOT_FOUND, "Not found", "the paths are POST /v1/events, GET /healthz, /readyz and /metrics")
        })
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    if health.ready.load(Ordering::Acquire) { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
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

//! `POST /v1/events`: CloudEvents over HTTP, answered once they are durable.

mod auth;
mod body;
mod events;
mod problem;

pub use auth::{ApiKey, ApiKeyError, ApiKeys};
pub use events::{EventsState, HttpLimits, router};
pub use problem::Problem;

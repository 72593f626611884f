//! The way of one call: key, body, media type, decode, submit, answer.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use ratemill_schemas::{UsageBatch, Verdict};
use serde::Serialize;

use super::{ApiKeys, Problem, body};
use crate::decode::DecodeContext;
use crate::decode::cloudevents::{self, BodyError};
use crate::intake::{InputName, Intake, IntakeError, Receipt};
use crate::mapping::Mapping;

/// What one call may be.
#[derive(Debug, Clone)]
pub struct HttpLimits {
    /// Bytes of a body as sent.
    pub body_bytes_max: usize,
    /// Bytes of a body after decompression.
    pub decoded_bytes_max: usize,
    /// Events of a call.
    pub events_max: usize,
    /// Seconds that a body may take to arrive.
    pub body_seconds_max: u64,
}

/// What the handler works with.
#[derive(Debug)]
pub struct EventsState {
    /// Name of this input, `http`.
    pub input: InputName,
    /// Where decoded usage goes.
    pub intake: Intake,
    /// How events are decoded.
    pub context: DecodeContext,
    /// The CloudEvents mapping.
    pub mapping: Mapping,
    /// Who may send.
    pub keys: ApiKeys,
    /// What one call may be.
    pub limits: HttpLimits,
}

/// `POST /v1/events`.
pub fn router(state: Arc<EventsState>) -> Router {
    Router::new().route("/v1/events", post(receive)).with_state(state)
}

/// The answer to a durable call.
#[derive(Debug, Serialize)]
struct Answer {
    accepted: usize,
    duplicates: usize,
    rejected: Vec<Rejected>,
    receipt: String,
}

#[derive(Debug, Serialize)]
struct Rejected {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    reason: &'static str,
    message: String,
}

async fn receive(State(state): State<Arc<EventsState>>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    state.keys.check(&headers)?;
    let mode = Mode::of(&headers)?;
    let sent = body::read(body, &state.limits).await?;
    let body = body::decode(&headers, sent, &state.limits)?;
    if body.is_empty() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "Empty body", "the body is empty; send at least one CloudEvent"));
    }
    let usage = mode.decode(&state, body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body))?;
    let rejected: Vec<Rejected> = usage
        .rejections
        .iter()
        .map(|rejection| Rejected {
            index: rejection.index,
            id: rejection.id.clone(),
            reason: rejection.reason.code(),
            message: rejection.message.clone(),
        })
        .collect();
    let rows = usage.rows.clone();
    let ids = Ids { usage: usage.batch.column(1).clone(), changes: usage.changes.as_ref().map(|changes| changes.column(1).clone()) };
    let receipt = state.intake.try_submit(&state.input, usage).await.map_err(refuse)?;
    Ok(answer(&receipt, rejected, &rows, &ids).into_response())
}

/// Ids of the rows of a call; changes follow usage.
struct Ids {
    usage: ArrayRef,
    changes: Option<ArrayRef>,
}

impl Ids {
    fn of(&self, row: usize) -> Option<String> {
        let text = |ids: &ArrayRef, row: usize| ids.as_string::<i32>().value(row).to_owned();
        match row.checked_sub(self.usage.len()) {
            None => Some(text(&self.usage, row)),
            Some(row) => self.changes.as_ref().map(|ids| text(ids, row)),
        }
    }
}

fn answer(receipt: &Receipt, mut rejected: Vec<Rejected>, rows: &[u32], ids: &Ids) -> Json<Answer> {
    let count = |verdict| receipt.verdicts.iter().filter(|given| **given == verdict).count();
    for (row, verdict) in receipt.verdicts.iter().enumerate() {
        if let Some((reason, message)) = verdict.conflict() {
            rejected.push(Rejected { index: rows[row], id: ids.of(row), reason: reason.code(), message: message.to_owned() });
        }
    }
    rejected.sort_by_key(|rejected| rejected.index);
    Json(Answer {
        accepted: count(Verdict::Accepted),
        duplicates: count(Verdict::Duplicate),
        rejected,
        receipt: format!("{}-{}", receipt.log_id, receipt.position),
    })
}

fn refuse(error: IntakeError) -> Problem {
    match error {
        IntakeError::Full => Problem::new(StatusCode::TOO_MANY_REQUESTS, "Too many events", error.to_string()).retry_after(1),
        IntakeError::Stopped => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Stopping", error.to_string()).retry_after(5),
    }
}

/// How the events lie in the body.
enum Mode {
    Structured,
    Batched,
    Lines,
    Binary(Vec<(String, String)>),
    /// `application/json` without `ce-` headers: one event or an array of them.
    Json,
}

impl Mode {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let unsupported = |detail: String| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type", detail);
        let text = match headers.get(header::CONTENT_TYPE) {
            Some(value) => value.to_str().map_err(|_| unsupported("the Content-Type header is not readable".to_owned()))?,
            None => return Err(unsupported(format!("no Content-Type; send {ACCEPTED}"))),
        };
        let media_type: mime::Mime = text.parse().map_err(|_| unsupported(format!("`{text}` is not a media type; send {ACCEPTED}")))?;
        if let Some(charset) = media_type.get_param(mime::CHARSET)
            && charset != mime::UTF_8
        {
            return Err(unsupported(format!("charset {charset} is not read; send UTF-8")));
        }
        match media_type.essence_str() {
            "application/cloudevents+json" => Ok(Self::Structured),
            "application/cloudevents-batch+json" => Ok(Self::Batched),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/jsonlines" => Ok(Self::Lines),
            essence if cloudevents::is_json(essence) && !essence.starts_with("application/cloudevents") => {
                let attributes = binary_attributes(headers)?;
                Ok(if attributes.is_empty() { Self::Json } else { Self::Binary(attributes) })
            }
            other => Err(unsupported(format!("`{other}` is not read; send {ACCEPTED}"))),
        }
    }

    fn decode(&self, state: &EventsState, body: &[u8]) -> Result<UsageBatch, Problem> {
        let (context, mapping, events_max) = (&state.context, &state.mapping, state.limits.events_max);
        let decoded = match self {
            Self::Structured => cloudevents::structured(context, mapping, body),
            Self::Batched => cloudevents::batched(context, mapping, body, events_max),
            Self::Lines => cloudevents::lines(context, mapping, body, events_max),
            Self::Binary(attributes) => cloudevents::binary(context, mapping, attributes, body),
            Self::Json if body.trim_ascii_start().starts_with(b"[") => cloudevents::batched(context, mapping, body, events_max),
            Self::Json => cloudevents::structured(context, mapping, body),
        };
        decoded.map_err(|error| {
            let (status, title) = match error {
                BodyError::TooManyEvents(_) | BodyError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "Body too large"),
                BodyError::NotUtf8(_) | BodyError::Malformed { .. } => (StatusCode::BAD_REQUEST, "Malformed body"),
            };
            Problem::new(status, title, error.to_string())
        })
    }
}

const ACCEPTED: &str =
    "application/cloudevents+json, application/cloudevents-batch+json, application/x-ndjson, or application/json with ce- headers";

/// The `ce-` headers, percent-decoded once as the HTTP binding says.
fn binary_attributes(headers: &HeaderMap) -> Result<Vec<(String, String)>, Problem> {
    let malformed = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "Malformed header", detail);
    let mut attributes: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        let Some(attribute) = name.as_str().strip_prefix("ce-") else { continue };
        if attribute == "datacontenttype" {
            return Err(malformed("ce-datacontenttype must not be sent; Content-Type says it".to_owned()));
        }
        if attributes.iter().any(|(known, _)| known == attribute) {
            return Err(malformed(format!("header ce-{attribute} occurs twice")));
        }
        let text = value.to_str().map_err(|_| malformed(format!("header ce-{attribute} is not ASCII; percent-encode it")))?;
        let decoded = percent_decode(text.trim_matches('"'))
            .ok_or_else(|| malformed(format!("header ce-{attribute} is not percent-encoded UTF-8")))?;
        attributes.push((attribute.to_owned(), decoded));
    }
    Ok(attributes)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            let mut decoded = [0];
            hex::decode_to_slice(digits, &mut decoded).ok()?;
            bytes.push(decoded[0]);
            rest = tail;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

//! Request bodies: bounded in size before and after decompression, and in time.

use std::io::Read;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::Problem;
use super::events::HttpLimits;

/// Reads the body as it was sent.
///
/// # Errors
/// 413 over the limit, 408 when it takes too long, 400 when the connection breaks.
pub(super) async fn read(body: Body, limits: &HttpLimits) -> Result<Bytes, Problem> {
    let collect = async {
        let mut stream = body.into_data_stream();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "Incomplete body", error.to_string()))?;
            if bytes.len() + chunk.len() > limits.body_bytes_max {
                return Err(too_large(limits.body_bytes_max, "sent"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    };
    let seconds = limits.body_seconds_max;
    tokio::time::timeout(Duration::from_secs(seconds), collect).await.map_err(|_| {
        Problem::new(StatusCode::REQUEST_TIMEOUT, "Body too slow", format!("the body did not arrive within {seconds} seconds"))
    })?
}

/// Undoes the content encoding; stops at the limit on what comes out.
///
/// # Errors
/// 415 for an unknown encoding, 413 over the limit, 400 for damaged data.
pub(super) fn decode(headers: &HeaderMap, body: Bytes, limits: &HttpLimits) -> Result<Bytes, Problem> {
    let encoding = match headers.get(header::CONTENT_ENCODING) {
        None => return Ok(body),
        Some(value) => value.to_str().unwrap_or("?").trim().to_ascii_lowercase(),
    };
    let damaged =
        |error: std::io::Error| Problem::new(StatusCode::BAD_REQUEST, "Damaged body", format!("the {encoding} body is damaged: {error}"));
    let reader: Box<dyn Read + '_> = match encoding.as_str() {
        "identity" | "" => return Ok(body),
        "gzip" | "x-gzip" => Box::new(flate2::read::MultiGzDecoder::new(&body[..])),
        "zstd" => Box::new(zstd::stream::read::Decoder::new(&body[..]).map_err(damaged)?),
        _ => {
            let detail = format!("content encoding `{encoding}` is not known; send gzip, zstd or none");
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported content encoding", detail));
        }
    };
    let mut decoded = Vec::with_capacity(body.len().saturating_mul(4).min(limits.decoded_bytes_max));
    reader.take(limits.decoded_bytes_max as u64 + 1).read_to_end(&mut decoded).map_err(damaged)?;
    if decoded.len() > limits.decoded_bytes_max {
        return Err(too_large(limits.decoded_bytes_max, "decompressed"));
    }
    Ok(decoded.into())
}

fn too_large(limit: usize, how: &str) -> Problem {
    let detail = format!("the body has more than {limit} bytes as {how}; send it in several calls");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "Body too large", detail)
}

//! `POST /v1/events` in every mode, its answers, and the other paths.

use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::engine::{Engine, sql};
use crate::project::{Project, kwh, lines};

#[test]
fn every_mode_and_encoding_is_accepted_and_a_resend_changes_nothing() {
    let project = Project::with_http();
    let engine = Engine::start(project.path());
    let event = |id: &str| kwh(id, "m1", "2026-09-01T10:00:00Z", "1.25");
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let batch = json!([event("b1"), event("b2")]).to_string();
    let binary = [
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "bin%20ary"),
        ("ce-source", "test"),
        ("ce-type", "kwh"),
        ("ce-subject", "m1"),
        ("ce-time", "2026-09-01T10:00:00Z"),
    ];
    type Call<'a> = (Vec<(&'a str, &'a str)>, Vec<u8>, u64);
    let calls: Vec<Call<'_>> = vec![
        (vec![("content-type", "application/cloudevents+json; charset=utf-8")], event("s1").to_string().into_bytes(), 1),
        (vec![("content-type", "application/cloudevents-batch+json")], batch.clone().into_bytes(), 2),
        (vec![("content-type", "application/x-ndjson")], lines(&[event("l1"), event("l2"), event("l3")]).into_bytes(), 3),
        (binary.to_vec(), br#"{"value": 1.25}"#.to_vec(), 1),
        (vec![("content-type", "application/json")], json!([event("j1")]).to_string().into_bytes(), 1),
        (
            vec![("content-type", "application/cloudevents-batch+json"), ("content-encoding", "gzip")],
            gzip(json!([event("g1")]).to_string().as_bytes()),
            1,
        ),
        (
            vec![("content-type", "application/cloudevents+json"), ("content-encoding", "zstd")],
            zstd::encode_all(event("z1").to_string().as_bytes(), 3).unwrap(),
            1,
        ),
    ];
    for round in 0..2 {
        for (headers, body, events) in &calls {
            let (status, answer) = engine.post(headers, body);
            assert_eq!(status, 200, "{headers:?}: {answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let (accepted, duplicates) = if round == 0 { (*events, 0) } else { (0, *events) };
            assert_eq!(
                (answer["accepted"].as_u64(), answer["duplicates"].as_u64()),
                (Some(accepted), Some(duplicates)),
                "{headers:?}: {answer}"
            );
            assert!(answer["receipt"].as_str().is_some_and(|receipt| receipt.contains('-')));
        }
    }
    // The same identity with other content is a conflict, and the first one stands.
    let answer = engine.send(&[kwh("s1", "m1", "2026-09-01T10:00:00Z", "9")]);
    assert_eq!(answer["rejected"][0]["reason"], "identity_conflict");
    // A number that means the same is the same.
    assert_eq!(engine.send(&[kwh("s1", "m1", "2026-09-01T12:00:00+02:00", "1.2500")])["duplicates"], 1);
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*), count(DISTINCT id), sum(quantity) FROM usage"), ["10,10,12.5"]);
    assert_eq!(sql(project.path(), "SELECT id FROM usage WHERE id LIKE 'bin%'"), ["bin ary"]);
    assert_eq!(sql(project.path(), "SELECT reason, count(*) FROM rejected GROUP BY reason"), ["identity_conflict,1"]);
}

#[test]
fn keys_are_asked_for_and_never_logged() {
    let digest = hex::encode(Sha256::digest(b"s3cr3t-token"));
    let project = Project::new(&format!("[http]\nlisten = \"127.0.0.1:0\"\nkeys = [{{ name = \"meters\", sha256 = \"{digest}\" }}]\n"));
    let engine = Engine::start(project.path());
    let body = json!([kwh("a", "m1", "2026-09-01T10:00:00Z", "1")]).to_string();
    let post = |authorization: Option<&str>| {
        let mut headers = vec![("content-type", "application/cloudevents-batch+json")];
        headers.extend(authorization.map(|value| ("authorization", value)));
        engine.post(&headers, body.as_bytes())
    };
    for wrong in [None, Some("Bearer wrong"), Some("Basic s3cr3t-token"), Some("Bearer")] {
        let (status, answer) = post(wrong);
        assert_eq!(status, 401, "{wrong:?}");
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["status"], 401);
    }
    assert_eq!(post(Some("Bearer s3cr3t-token")).0, 200);
    engine.stop();
    let log = std::fs::read_to_string(project.path().join("engine.stderr")).unwrap();
    assert!(!log.contains("s3cr3t"), "{log}");
}

#[test]
fn health_metrics_and_a_quick_stop() {
    let project = Project::with_http();
    let engine = Engine::start(project.path());
    engine.send(&[kwh("a", "m1", "2026-09-01T10:00:00Z", "1")]);
    assert_eq!(engine.get("/healthz").0, 200);
    let (status, metrics) = engine.get("/metrics");
    assert_eq!(status, 200);
    for expected in [
        "ratemill_ingest_events_total{connector=\"http\",outcome=\"accepted\"} 1",
        "ratemill_build_info",
        "ratemill_log_commit_duration_seconds",
    ] {
        assert!(metrics.contains(expected), "{expected} is not in\n{metrics}");
    }
    assert_eq!(engine.get("/nothing").0, 404);
    assert!(engine.stop().as_secs() < 10);
}

#[test]
fn a_full_log_pushes_back_and_loses_nothing() {
    // No epoch comes while this runs, so that the log stays full.
    let project = Project::new("[http]\nlisten = \"127.0.0.1:0\"\n[log]\nquota = \"64 KiB\"\n[epoch]\ninterval = \"1 hour\"\n");
    let engine = Engine::start(project.path());
    let mut accepted = 0;
    let mut refused = false;
    for n in 0..200 {
        let events: Vec<Value> = (0..20).map(|k| kwh(&format!("e{n}-{k}"), "m1", "2026-09-01T10:00:00Z", "1")).collect();
        let (status, answer) =
            engine.post(&[("content-type", "application/cloudevents-batch+json")], &serde_json::to_vec(&events).unwrap());
        match status {
            200 => accepted += 20,
            429 => {
                assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["status"], 429);
                refused = true;
                break;
            }
            other => panic!("{other}: {answer}"),
        }
    }
    assert!(refused && accepted > 0);
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*) FROM usage"), [accepted.to_string()]);
}

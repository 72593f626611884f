//! `ratemill status`, `GET /v1/status` and the gauges of `/metrics`: how far the lake is, and how the engine is.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::engine::{Engine, ok, ratemill, try_request, wait};
use crate::project::{Project, RULE, kwh};

/// A project whose windows stay open.
fn open(toml: &str) -> Project {
    let project = Project::new(toml);
    project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
    project
}

fn status(project: &Project) -> Value {
    serde_json::from_str(&ok(&["status", "-C", project.text(), "--format", "json"])).unwrap()
}

#[test]
fn status_says_how_far_the_lake_is() {
    let project = open("[epoch]\ninterval = \"100 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    let nothing = ratemill(&["status", "-C", project.text()], &[]);
    assert!(String::from_utf8(nothing.stderr).unwrap().contains("holds no completed epoch yet"));
    let engine = Engine::start(project.path());
    engine.send(&[kwh("a", "m1", "2026-09-03T10:00:00Z", "10")]);
    wait("the usage is in it", || status(&project)["position"] == json!(1));
    let now = status(&project);
    assert_eq!(now["watermark"], json!("2026-09-03T10:00:00Z"));
    assert_eq!((&now["inputs"][0]["input"], &now["inputs"][0]["idle"]), (&json!("http"), &json!(false)));
    assert_eq!((&now["rules"][0]["rule"], &now["rules"][0]["open"]), (&json!("energy"), &json!(1)));
    assert_eq!(now["rules"][0]["first_open"], json!("2026-09-01T00:00:00Z"));
    assert_eq!(now["owner"]["released"], json!(false));
    engine.stop();
    let now = status(&project);
    assert_eq!((&now["owner"]["released"], &now["engine"], &now["live"]), (&json!(true), &json!("none"), &Value::Null));
    let text = ok(&["status", "-C", project.text()]);
    assert!(text.contains("watermark  2026-09-03T10:00:00Z") && text.contains("1 open from 2026-09-01T00:00:00Z"), "{text}");
    assert!(text.contains("engine     none runs"), "{text}");
}

#[test]
fn a_live_engine_says_how_it_is() {
    let digest = |key: &str| hex::encode(Sha256::digest(key.as_bytes()));
    let project = open(&format!(
        "[epoch]\ninterval = \"100 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\nkeys = [{{ name = \"meters\", sha256 = \"{}\" }}, {{ name = \"billing\", sha256 = \"{}\", charges = true }}]\n",
        digest("sends"),
        digest("reads")
    ));
    let engine = Engine::start(project.path());
    let mut wrong = kwh("b", "m1", "2026-09-03T10:00:00Z", "10");
    wrong["subject"] = Value::Null;
    let events = [
        kwh("a", "m1", "2026-09-03T10:00:00Z", "10"),
        kwh("a", "m1", "2026-09-03T10:00:00Z", "10"),
        kwh("a", "m1", "2026-09-03T10:00:00Z", "11"),
        wrong,
    ];
    let headers = [("content-type", "application/cloudevents-batch+json"), ("authorization", "Bearer sends")];
    assert_eq!(engine.post(&headers, &serde_json::to_vec(&events).unwrap()).0, 200);
    let asked = |key: &str| try_request(&engine.address, "GET", "/v1/status", &[("authorization", &format!("Bearer {key}"))], b"").unwrap();
    assert_eq!((engine.get("/v1/status").0, asked("sends").0), (401, 403));
    let live = || -> Value { serde_json::from_str(&asked("reads").1).unwrap() };
    wait("the usage is in the lake", || live()["log"]["drained"] == json!(3) && live()["epochs"]["completed"] != json!(0));
    let now = live();
    let input = &now["inputs"][0];
    let counts = ["accepted", "duplicate", "conflict", "rejected", "refused"].map(|outcome| input[outcome].clone());
    assert_eq!(counts, [1, 1, 1, 1, 0].map(|count| json!(count)), "{now:#}");
    assert_eq!(
        (&input["input"], &input["last_minute"], &input["latest_event"]),
        (&json!("http"), &json!(4), &json!("2026-09-03T10:00:00Z"))
    );
    assert_eq!((&now["open_windows"], &now["watermark"]), (&json!(1), &json!("2026-09-03T10:00:00Z")), "{now:#}");
    assert_eq!((&now["dedup"]["in_memory"], &now["dedup"]["on_disk"]), (&json!(3), &json!(0)), "{now:#}");
    assert_eq!((&now["back_pressure"], &now["log"]["undrained_bytes"], &now["queue"]["bytes"]), (&json!("none"), &json!(0), &json!(0)));
    assert!(now["epochs"]["completed"].as_u64().unwrap() > 0 && now["fold_state_bytes"].as_u64().unwrap() > 0, "{now:#}");
    assert_eq!(now["http"], json!(engine.address));
    // The command needs neither listener nor key.
    wait("the log folder tells it", || status(&project)["live"]["open_windows"] == json!(1));
    let text = ok(&["status", "-C", project.text()]);
    for expected in [
        "back-pressure: none",
        "1 accepted, 1 duplicate, 1 conflict, 1 rejected, 0 refused",
        "3 event ids in memory",
        "1 open, folded state",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    let gauges = [
        "ratemill_watermark_timestamp_seconds 1788",
        "ratemill_input_latest_event_timestamp_seconds{connector=\"http\"} 1788",
        "ratemill_undrained_bytes 0",
        "ratemill_undrained_records 0",
        "ratemill_log_quota_bytes 8589934592",
        "ratemill_queue_bytes 0",
        "ratemill_queue_capacity_bytes",
        "ratemill_open_windows 1",
        "ratemill_waiting_windows 0",
        "ratemill_fold_state_bytes",
        "ratemill_dedup_ids{tier=\"memory\"} 3",
        "ratemill_dedup_ids{tier=\"disk\"} 0",
        "ratemill_epoch_lag_seconds 0",
        "ratemill_back_pressure 0",
        "ratemill_epochs_total",
    ];
    // They are set once a second.
    wait("the gauges are set", || gauges.iter().all(|gauge| engine.get("/metrics").1.contains(gauge)));
    let pid = live()["pid"].clone();
    engine.kill();
    let gone = status(&project);
    assert_eq!((&gone["engine"], &gone["live"]["pid"]), (&json!("gone"), &pid));
    assert!(ok(&["status", "-C", project.text()]).contains("it is gone, or hangs"));
}

#[test]
fn an_engine_without_a_listener_and_without_an_epoch_says_that_it_pushes_back() {
    // The log is full at once, and no epoch empties it.
    let project = open(
        "[log]\nquota = \"1 KiB\"\n[epoch]\ninterval = \"1 hour\"\n[[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"50 milliseconds\"\npoll = \"50 milliseconds\"\n",
    );
    let mut engine = std::process::Command::new(crate::engine::binary())
        .args(["run", "-C", project.text()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let live = || -> Value {
        let output = ratemill(&["status", "-C", project.text(), "--format", "json"], &[]);
        serde_json::from_slice::<Value>(&output.stdout).map_or(Value::Null, |status| status["live"].clone())
    };
    wait("it runs", || live()["back_pressure"] == json!("none"));
    for n in 0..20 {
        let events: Vec<Value> = (0..20).map(|k| kwh(&format!("e{n}-{k}"), "m1", "2026-09-01T10:00:00Z", "1")).collect();
        project.drop_file(&format!("drop/{n}.ndjson"), crate::project::lines(&events).as_bytes());
    }
    wait("it pushes back", || live()["back_pressure"] == json!("log quota reached"));
    let now = live();
    assert_eq!(now["inputs"][0]["input"], json!("drop"), "{now:#}");
    assert!(now["log"]["undrained_bytes"].as_u64() > now["log"]["quota_bytes"].as_u64(), "{now:#}");
    assert_eq!((&now["http"], &now["epochs"]["completed"]), (&Value::Null, &json!(0)), "{now:#}");
    engine.kill().unwrap();
    engine.wait().unwrap();
}

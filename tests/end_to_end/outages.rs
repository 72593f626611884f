//! A full disk, a store that is away, rules that are slow, clocks that jump, and two engines that want one lake.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::batch::net;
use crate::engine::{Engine, binary, ok, ratemill, report, sql, sql_with, try_request, wait};
use crate::project::{Project, kwh, lines, september};
use crate::scenario::{Run, Scenario};
use crate::servers::{Mosquitto, S3};

const BATCH: [(&str, &str); 1] = [("content-type", "application/cloudevents-batch+json")];

fn post(engine: &Engine, events: &[Value]) -> u16 {
    let body = serde_json::to_vec(events).unwrap();
    try_request(&engine.address, "POST", "/v1/events", &BATCH, &body).map_or(0, |(status, _)| status)
}

fn log_of(project: &Project) -> String {
    fs::read_to_string(project.path().join("engine.stderr")).unwrap_or_default()
}

/// What `events` are charged by a command, and by the project when all its windows are closed.
fn assert_charged(project: &Project, events: &[Value], environment: &[(String, String)]) {
    let clean = Project::new("");
    let usage = clean.write("usage.ndjson", &lines(events));
    ok(&["rate", "-C", clean.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    let nothing = project.write("nothing.ndjson", "");
    crate::engine::ok_with(&["rate", "-C", project.text(), "--usage", nothing.to_str().unwrap(), "--close"], environment);
    let query = "SELECT customer_id, item, billing_period, currency, sum(quantity) AS quantity, sum(amount) AS amount FROM charges \
         GROUP BY customer_id, item, billing_period, currency HAVING sum(amount) <> 0 ORDER BY 1, 2, 3";
    assert_eq!(sql_with(project.path(), query, environment), net(&clean));
}

/// A file system of its own on a folder, so small that a test can fill it.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    fn mount(folder: &Path, megabytes: usize) -> Self {
        let size = format!("size={megabytes}m");
        as_root(&["mount", "-t", "tmpfs", "-o", &size, "none", folder.to_str().unwrap()]);
        Self { folder: folder.to_owned() }
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let path = self.folder.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        for size in [1 << 20, 1 << 12] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whatever still runs on it is of a test that failed.
        as_root(&["umount", "-l", self.folder.to_str().unwrap()]);
    }
}

/// Mounting is for root: in CI the tests are, on a desk `sudo` asks.
fn as_root(arguments: &[&str]) {
    let is_root = String::from_utf8(Command::new("id").arg("-u").output().unwrap().stdout).unwrap().trim() == "0";
    let (program, arguments) = if is_root { (arguments[0], &arguments[1..]) } else { ("sudo", arguments) };
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success() || std::thread::panicking(), "{program} {arguments:?}: {status}");
}

#[test]
fn a_full_disk_refuses_usage_and_loses_none() {
    let project = Project::bare();
    let disk = SmallDisk::mount(project.path(), 64);
    let template = Project::new("[epoch]\ninterval = \"100 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    ok_copy(template.path(), project.path());
    let events = september(2000);
    let mut engine = Engine::start(project.path());
    let mut sent = events.chunks(20);
    for part in sent.by_ref().take(5) {
        assert_eq!(post(&engine, part), 200);
    }
    let ballast = disk.fill();
    // Pages that are begun take some more, then nothing.
    let mut refused = Vec::new();
    for part in sent.by_ref() {
        match post(&engine, part) {
            200 => {}
            429 => refused.push(part),
            other => panic!("{other}: {:?}", engine.ended()),
        }
        if refused.len() == 5 {
            break;
        }
    }
    assert_eq!(refused.len(), 5, "the disk was never full");
    assert!(engine.ended().is_none() && engine.get("/readyz").0 == 200, "the engine goes on");
    fs::remove_file(&ballast).unwrap();
    for part in refused {
        wait("there is room again", || post(&engine, part) == 200);
    }
    let rest: Vec<Value> = sent.flatten().cloned().collect();
    engine.send(&rest);
    engine.kill();
    let engine = Engine::start(project.path());
    let answer = engine.send(&events);
    assert_eq!((answer["accepted"].as_u64(), answer["duplicates"].as_u64()), (Some(0), Some(2000)));
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*), count(DISTINCT id), count(DISTINCT log_position) FROM usage"), ["2000,2000,2000"]);
    assert_charged(&project, &events, &[]);
}

/// Copies what a project is made of.
fn ok_copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-r", &format!("{}/.", from.display()), to.to_str().unwrap()]).status().unwrap();
    assert!(copied.success());
}

#[test]
fn while_the_store_is_away_usage_goes_into_the_log_until_its_quota() {
    let is_long = std::env::var("RATEMILL_RUNS").ok().and_then(|runs| runs.parse::<usize>().ok()).is_some_and(|runs| runs >= 50);
    let away_for = Duration::from_secs(if is_long { 600 } else { 5 });
    let mut server = S3::start();
    let environment = server.environment();
    let broker = Mosquitto::start();
    let project = Project::new(&format!(
        "[epoch]\ninterval = \"200 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n[lake]\nurl = \"s3://lake/away\"\n[log]\nquota = \"64 KiB\"\n\
         [[mqtt]]\nname = \"meters\"\nurl = \"mqtt://127.0.0.1:{}\"\nclient_id = \"away\"\ntopics = [\"meters/#\"]\n",
        broker.port
    ));
    let events = september(2000);
    let (over_http, over_mqtt) = events.split_at(1980);
    let engine = Engine::start_with(project.path(), &environment);
    wait("subscribed", || log_of(&project).contains("subscribed"));
    let (first, rest) = over_http.split_at(20);
    engine.send(first);
    let mut refused: Vec<&[Value]> = Vec::new();
    let mut accepted = 0;
    server.away(|| {
        let begun = Instant::now();
        for part in rest.chunks(20) {
            match post(&engine, part) {
                200 => accepted += 1,
                429 => refused.push(part),
                other => panic!("{other}"),
            }
        }
        assert!(accepted > 3 && refused.len() > 3, "{accepted} accepted, {} refused", refused.len());
        broker.publish("meters/a", &lines(over_mqtt), 1, &[]);
        wait("an epoch fails", || {
            let (_, metrics) = engine.get("/metrics");
            log_of(&project).contains("the epoch failed")
                || metrics.contains("ratemill_epoch_failures_total 1")
                || begun.elapsed() > Duration::from_secs(60)
        });
        while begun.elapsed() < away_for {
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(engine.get("/readyz").0, 200);
        assert_eq!(post(&engine, refused[0]), 429, "the quota holds as long as the store is away");
    });
    for part in refused {
        wait("the log is drained", || post(&engine, part) == 200);
    }
    let count = || ratemill(&["sql", "-C", project.text(), "-c", "SELECT count(*) FROM usage", "--format", "csv"], &environment).stdout;
    wait("all is in the lake, over MQTT, too", || count().ends_with(b"\n2000\n"));
    engine.stop();
    assert_charged(&project, &events, &environment);
    report(&format!("store away: {} s, {accepted} batches kept in the log, 0 lost", away_for.as_secs()));
}

#[test]
fn slow_rules_do_not_stop_capture() {
    let project = Project::new("[epoch]\ninterval = \"100 milliseconds\"\nfold = false\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.write("reference/steps.toml", "key = [\"step\"]\n[columns]\nstep = \"text\"\n");
    let steps: String = (0..120).map(|step| format!("s{step}\n")).collect();
    project.write("reference/steps.csv", &format!("step\n{steps}"));
    project.write(
        "rules/slow.sql",
        "CREATE MATERIALIZED VIEW slow WITH (window = 'month', grace = '1 day', effective_from = '2026-09-01', fan_out = 'allowed') AS
         SELECT u.subject AS customer_id, 'Slow' AS item, count(DISTINCT concat(a.step, b.step, c.step)) * 0.01 AS amount, 'EUR' AS currency
         FROM usage u CROSS JOIN steps a CROSS JOIN steps b CROSS JOIN steps c WHERE u.meter = 'kwh' GROUP BY u.subject",
    );
    let engine = Engine::start(project.path());
    engine.send(&[kwh("a", "m1", "2026-09-03T10:00:00Z", "1"), kwh("b", "m0", "2026-10-05T00:00:00Z", "1")]);
    let epoch = |name: &str| project.path().join(format!("lake/epochs/000000000001.{name}.json"));
    wait("the epoch is under way", || epoch("manifest").exists());
    let mut answered = 0;
    while !epoch("done").exists() {
        let mut other = kwh(&format!("c{answered}"), "m2", "2026-10-05T00:00:00Z", "1");
        other["type"] = "water".into();
        engine.send(&[other]);
        answered += 1;
    }
    assert!(answered >= 20, "only {answered} answers while the rule was slow");
    engine.stop();
    // The engine may have stopped before another slow epoch was over: a command drains the log.
    let nothing = project.write("nothing.ndjson", "");
    ok(&["rate", "-C", project.text(), "--usage", nothing.to_str().unwrap()]);
    assert_eq!(sql(project.path(), "SELECT amount FROM charges WHERE rule = 'slow' AND customer_id = 'm1'"), ["17280"]);
    assert_eq!(sql(project.path(), "SELECT count(*) FROM usage"), [(answered + 2).to_string()]);
}

#[test]
fn clocks_that_jump_an_hour_change_no_charge() {
    let scenario = Scenario::load("electricity");
    let project = scenario.project("", "");
    let clock = project.write("clock", "+0");
    let preload = ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"];
    let preload =
        preload.into_iter().find(|path| Path::new(path).exists()).expect("faketime is not there: run tests/run.sh, which installs it");
    let file = clock.clone();
    let mut run = Run::new(&project, &[]).by(move || {
        let mut command = Command::new(binary());
        command.env("LD_PRELOAD", preload).env("FAKETIME_TIMESTAMP_FILE", &file);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    });
    let completed_at = || {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(project.path().join("lake/epochs")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.to_str().unwrap().ends_with(".done.json"));
        paths.sort();
        let completion: Value = serde_json::from_slice(&fs::read(paths.last().unwrap()).unwrap()).unwrap();
        completion["completed_at"].as_i64().unwrap()
    };
    let mut clocks = Vec::new();
    for (part, offset) in scenario.parts.iter().zip(["+3600", "-3600", "+0", "+3600"]) {
        run.deliver(part);
        run.settle();
        clocks.push(completed_at());
        if let Some(month) = &part.close {
            // By another process, whose clock is right, and another engine after it.
            run.close(month);
        }
        fs::write(&clock, offset).unwrap();
    }
    run.stop();
    let minutes: Vec<i64> = clocks.windows(2).map(|pair| (pair[1] - pair[0]) / 60_000_000).collect();
    assert!((55..=65).contains(&minutes[0]) && (-125..=-115).contains(&minutes[1]), "the clock did not jump: {minutes:?}");
    scenario.assert_books(&project, "with a clock that jumps");
    ok(&["audit", "-C", project.text()]);
}

#[test]
fn an_engine_that_was_paused_in_mid_commit_is_fenced_when_it_goes_on() {
    let toml = "[epoch]\ninterval = \"100 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n";
    let paused = Project::new(&format!("{toml}[lake]\nlease = \"2 seconds\"\n"));
    let go = paused.path().join("go");
    let point = ("RATEMILL_FAIL_AT".to_owned(), format!("epoch.usage-appended:1:{}", go.display()));
    let mut engine = Engine::start_with(paused.path(), &[point]);
    let events = september(50);
    engine.send(&events);
    wait("it is in mid-commit", || log_of(&paused).contains("waiting at failpoint"));
    engine.signal("STOP");
    // The log is brought to another machine, which goes on with it.
    let other = Project::new(&format!("{toml}[lake]\nurl = \"{}/lake\"\nlease = \"2 seconds\"\n", paused.text()));
    ok_copy(&paused.path().join("log"), &other.path().join("log"));
    let heir = Engine::start(other.path());
    assert_eq!(heir.send(&events)["duplicates"], 50);
    let october = kwh("october", "m0", "2026-10-05T00:00:00Z", "0");
    heir.send(std::slice::from_ref(&october));
    let published =
        || ratemill(&["sql", "-C", other.text(), "-c", "SELECT 1 FROM charges LIMIT 1", "--format", "csv"], &[]).stdout.ends_with(b"\n1\n");
    wait("September is published", published);
    let before = sql(other.path(), "SELECT count(*), sum(amount) FROM charges");
    fs::write(&go, "").unwrap();
    engine.signal("CONT");
    let status = engine.wait_for_end();
    let log = log_of(&paused);
    assert_eq!(status.code(), Some(5), "{log}");
    assert!(log.contains("taken over by process"), "{log}");
    heir.stop();
    assert_eq!(sql(other.path(), "SELECT count(*), sum(amount) FROM charges"), before);
    assert_eq!(sql(other.path(), "SELECT count(*), count(DISTINCT id) FROM usage"), ["51,51"]);
    assert_charged(&other, &[&events[..], &[october]].concat(), &[]);
}

#[test]
fn a_lake_whose_log_is_not_drained_goes_to_no_other_log() {
    let toml = "[epoch]\ninterval = \"1 hour\"\n[http]\nlisten = \"127.0.0.1:0\"\n";
    let first = Project::new(&format!("{toml}[lake]\nlease = \"1 second\"\n"));
    let engine = Engine::start(first.path());
    engine.send(&september(10));
    let other = Project::new(&format!("[lake]\nurl = \"{}/lake\"\nlease = \"1 second\"\n", first.text()));
    let usage = other.write("usage.ndjson", &lines(&[kwh("x", "m1", "2026-09-03T10:00:00Z", "1")]));
    let refused = || {
        let output = ratemill(&["rate", "-C", other.text(), "--usage", usage.to_str().unwrap()], &[]);
        assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused().contains("its lease lasts until"), "a second engine is told how long the first one has the lake");
    engine.kill();
    wait("the lease is over", || refused().contains("its log still holds usage that is not in the lake; start it once more with that log"));
    Engine::start(first.path()).stop();
    ok(&["rate", "-C", other.text(), "--usage", usage.to_str().unwrap()]);
    assert_eq!(sql(other.path(), "SELECT count(*) FROM usage"), ["11"]);
}

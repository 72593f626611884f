//! Senders over every transport with a list of obligations, and an engine that is killed at random moments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::batch::net;
use crate::engine::{Engine, ok, report, sql, try_request, wait};
use crate::project::{Project, RULE, lines, september};
use crate::servers::Mosquitto;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn kill_9_at_any_moment_loses_nothing_and_charges_nothing_twice() {
    let (runs, seed) = (number("RATEMILL_RUNS", 10), number("RATEMILL_SEED", 1));
    let mut random = StdRng::seed_from_u64(seed);
    let events = september(3000);
    let (over_http, rest) = events.split_at(1000);
    let (over_mqtt, over_files) = rest.split_at(1000);

    let broker = Mosquitto::start();
    let project = Project::new(&format!(
        "[epoch]\ninterval = \"200 milliseconds\"\ncheckpoint = \"0 seconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n[[mqtt]]\nname = \"meters\"\nurl = \"mqtt://127.0.0.1:{}\"\nclient_id = \"crash\"\ntopics = [\"meters/#\"]\n\
         [[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"50 milliseconds\"\npoll = \"50 milliseconds\"\n",
        broker.port
    ));
    // Windows that are folded for some epochs and closed between kills.
    let daily = RULE.replace("1 day", "2 seconds").replace("'month'", "'day'").replace("VIEW energy", "VIEW daily");
    project.write("rules/daily.sql", &daily);
    let engine = Engine::start(project.path());
    let address = Arc::new(Mutex::new(engine.address.clone()));
    wait("subscribed", || std::fs::read_to_string(project.path().join("engine.stderr")).unwrap().contains("subscribed"));

    let done = Arc::new(AtomicBool::new(false));
    let senders = std::thread::scope(|scope| {
        let http = scope.spawn(|| send_http(over_http, &address, seed));
        scope.spawn(|| {
            for part in over_mqtt.chunks(40) {
                broker.publish("meters/a", &lines(part), 1, &[]);
                std::thread::sleep(Duration::from_millis(20 * runs.min(50) / 10));
            }
        });
        scope.spawn(|| {
            for (number, part) in over_files.chunks(50).enumerate() {
                project.drop_file(&format!("drop/{number:03}.ndjson"), lines(part).as_bytes());
                std::thread::sleep(Duration::from_millis(20 * runs.min(50) / 10));
            }
        });
        let killer = scope.spawn(|| {
            let mut engine = engine;
            for run in 0..runs {
                std::thread::sleep(Duration::from_millis(random.random_range(20..900)));
                engine.kill();
                engine = Engine::start(project.path());
                (*address.lock().unwrap()).clone_from(&engine.address);
                eprintln!("kill {} of {runs}", run + 1);
            }
            engine
        });
        let obligations = http.join().unwrap();
        let engine = killer.join().unwrap();
        done.store(true, Ordering::Release);
        (obligations, engine)
    });
    let (acknowledged, engine) = senders;
    wait("everything that was sent is stored", || sql(project.path(), "SELECT count(*) FROM usage") == ["3000"]);
    assert_eq!(acknowledged, over_http.len(), "every HTTP event was acknowledged in the end");
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*), count(DISTINCT id), count(DISTINCT log_position) FROM usage"), ["3000,3000,3000"]);

    let usage = project.write("nothing.ndjson", "");
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    let clean = Project::new("");
    clean.write("rules/daily.sql", &daily);
    let usage = clean.write("usage.ndjson", &lines(&events));
    ok(&["rate", "-C", clean.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    assert_eq!(net(&project), net(&clean));
    let columns = "SELECT source, id, meter, subject, time, quantity FROM usage ORDER BY id";
    assert_eq!(sql(project.path(), columns), sql(clean.path(), columns));
    assert_eq!(sql(project.path(), "SELECT count(*) FROM rejected"), ["0"]);
    report(&format!("crash test: {runs} kills with seed {seed}, 3000 events over three transports, 0 lost, 0 doubled"));
}

/// Sends each batch until it is acknowledged, now and then once more, and returns the events acknowledged.
fn send_http(events: &[Value], address: &Mutex<String>, seed: u64) -> usize {
    let mut random = StdRng::seed_from_u64(seed ^ 1);
    let mut acknowledged = 0;
    for batch in events.chunks(10) {
        let body = serde_json::to_vec(batch).unwrap();
        let repeats = if random.random_bool(0.1) { 2 } else { 1 };
        for _ in 0..repeats {
            loop {
                let target = address.lock().unwrap().clone();
                match try_request(&target, "POST", "/v1/events", &[("content-type", "application/cloudevents-batch+json")], &body) {
                    Some((200, _)) => break,
                    _ => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        }
        acknowledged += batch.len();
        std::thread::sleep(Duration::from_millis(10));
    }
    acknowledged
}

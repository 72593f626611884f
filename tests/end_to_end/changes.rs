//! Voids and amendments: whatever the order, the charges are those of the events in force.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::batch::net;
use crate::engine::{Engine, ok, ratemill, sql, try_request, wait};
use crate::project::{Project, RULE, kwh, lines};
use crate::servers::Mosquitto;

pub fn void(id: &str, target: &str) -> Value {
    json!({"specversion": "1.0", "source": "office", "id": id, "type": "ratemill.void",
           "data": {"target": {"source": "test", "id": target}, "why": "test"}})
}

/// An amendment whose new event is `event`, under the identity that the event has.
pub fn amendment(id: &str, version: u64, event: &Value) -> Value {
    json!({"specversion": "1.0", "source": "office", "id": id, "type": "ratemill.amend",
           "data": {"target": {"source": event["source"], "id": event["id"]}, "version": version, "event": event}})
}

/// Every arrangement of every part of `parts` that has the first of them.
fn arrangements(parts: &[usize]) -> Vec<Vec<usize>> {
    fn extend(parts: &[usize], taken: &mut Vec<usize>, found: &mut Vec<Vec<usize>>) {
        if taken.contains(&0) {
            found.push(taken.clone());
        }
        for part in parts {
            if !taken.contains(part) {
                taken.push(*part);
                extend(parts, taken, found);
                taken.pop();
            }
        }
    }
    let mut found = Vec::new();
    extend(parts, &mut Vec::new(), &mut found);
    found
}

/// One event and what comes of it.
struct Case {
    messages: Vec<Value>,
    in_force: Option<Value>,
}

/// Cases over original, duplicate, amendments 1 and 2, and void; the amendments go to other subjects, quantities and windows.
fn cases() -> Vec<Case> {
    let arrangements = arrangements(&[0, 1, 2, 3, 4]);
    assert_eq!(arrangements.len(), 261);
    let case = |(number, arrangement): (usize, Vec<usize>)| {
        let id = format!("e{number}");
        let event = |subject: usize, month: usize, quantity: usize| {
            let time = format!("2026-{month:02}-{:02}T{:02}:00:00Z", number % 28 + 1, number % 24);
            kwh(&id, &format!("m{}", subject % 10), &time, &format!("{quantity}.{number:03}"))
        };
        let (original, first, second) = (event(number, 9, 1), event(number + 1, 9, 2), event(number + 2, 10, 3));
        let of = |part: &usize| match part {
            2 => amendment(&format!("{id}-1"), 1, &first),
            3 => amendment(&format!("{id}-2"), 2, &second),
            4 => void(&format!("{id}-void"), &id),
            _ => original.clone(),
        };
        let has = |part| arrangement.contains(&part);
        let in_force = [(4, None), (3, Some(&second)), (2, Some(&first)), (0, Some(&original))];
        let in_force = in_force.into_iter().find(|(part, _)| has(*part)).and_then(|(_, event)| event.cloned());
        Case { messages: arrangement.iter().map(of).collect(), in_force }
    };
    arrangements.into_iter().enumerate().map(case).collect()
}

/// A project with a second rule, which sees what was before its window.
fn project() -> Project {
    let project = Project::new("[http]\nlisten = \"127.0.0.1:0\"\n");
    project.write(
        "rules/levels.sql",
        "CREATE MATERIALIZED VIEW levels WITH (window = 'week', grace = '1 day', carry = 'subject', effective_from = '2026-09-01') AS
SELECT o.subject AS customer_id, 'Level' AS item, sum(o.quantity) AS amount, 'EUR' AS currency
FROM opening o WHERE o.meter = 'kwh' GROUP BY o.subject
",
    );
    project
}

fn rate(project: &Project, name: &str, events: &[Value], more: &[&str]) {
    let file = project.write(name, &lines(events));
    let arguments: Vec<&str> =
        ["rate", "-C", project.text(), "--usage", file.to_str().unwrap()].into_iter().chain(more.iter().copied()).collect();
    ok(&arguments);
}

fn closing() -> Value {
    kwh("closing", "m0", "2026-11-15T00:00:00Z", "0")
}

/// What the events in force are charged, and what they are.
fn expected(cases: &[Case]) -> (Vec<String>, Vec<String>) {
    let fresh = project();
    let mut events: Vec<Value> = cases.iter().filter_map(|case| case.in_force.clone()).collect();
    events.push(closing());
    rate(&fresh, "usage.ndjson", &events, &["--close"]);
    (net_by_window(&fresh), sql(fresh.path(), EVENTS.replace("TABLE", "usage").as_str()))
}

const EVENTS: &str = "SELECT source, id, meter, subject, time, quantity FROM TABLE ORDER BY id";

/// Up to the last event: a live engine goes on with the weeks after it as the clock does.
fn net_by_window(project: &Project) -> Vec<String> {
    sql(
        project.path(),
        "SELECT rule, customer_id, item, window_start, sum(amount), sum(quantity) FROM charges
         WHERE window_start < '2026-11-16T00:00:00Z' GROUP BY rule, customer_id, item, window_start HAVING sum(amount) <> 0 ORDER BY 1, 2, 3, 4",
    )
}

fn assert_in_force(project: &Project, expected: &(Vec<String>, Vec<String>)) {
    assert_eq!(sql(project.path(), &EVENTS.replace("TABLE", "effective_usage")), expected.1);
    assert_eq!(net_by_window(project), expected.0);
}

#[test]
fn every_order_in_one_run_and_over_runs_gives_the_same_charges() {
    let cases = cases();
    let expected = expected(&cases);
    let whole = project();
    let mut all: Vec<Value> = cases.iter().flat_map(|case| case.messages.clone()).collect();
    all.push(closing());
    rate(&whole, "usage.ndjson", &all, &["--close"]);
    assert_in_force(&whole, &expected);
    let originals = sql(whole.path(), "SELECT count(*) FROM usage");
    assert_eq!(originals, ["262"]);

    let split = project();
    for run in 0..5 {
        let part: Vec<Value> = cases.iter().filter_map(|case| case.messages.get(run).cloned()).chain([closing()]).collect();
        // Windows are published by the first run, and corrected by the others.
        rate(&split, &format!("part-{run}.ndjson"), &part, &["--close"]);
    }
    assert_in_force(&split, &expected);
    let causes = sql(split.path(), "SELECT DISTINCT cause FROM charges WHERE class = 'correction' ORDER BY 1");
    assert_eq!(causes, ["late usage", "void or amendment"]);
    // Everything once more: nothing new.
    let before = sql(split.path(), "SELECT count(*) FROM charges");
    let stored = sql(split.path(), "SELECT count(*) FROM changes");
    rate(&split, "again.ndjson", &all, &["--close"]);
    assert_eq!(sql(split.path(), "SELECT count(*) FROM charges"), before);
    assert_eq!(sql(split.path(), "SELECT count(*) FROM changes"), stored);
    assert_eq!(sql(split.path(), "SELECT count(*) FROM rejected"), ["0"]);
    // The index of ids is made again with changes in it.
    std::fs::remove_dir_all(split.path().join("log/dedup")).unwrap();
    rate(&split, "once-more.ndjson", &all, &["--close"]);
    assert_eq!(sql(split.path(), "SELECT count(*) FROM changes"), stored);
    assert_in_force(&split, &expected);
}

/// Customer, start of the window and quantity of running charges of energy.
fn running(engine: &Engine) -> Vec<String> {
    let (status, body) = engine.get("/v1/running-charges?rule=energy");
    assert_eq!(status, 200, "{body}");
    // The body is sent in chunks: their lengths stand between the lines.
    let rows = body.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let mut rows: Vec<_> =
        rows.map(|row| format!("{},{},{}", text(&row, "customer_id"), text(&row, "window_start"), text(&row, "quantity"))).collect();
    rows.sort();
    rows
}

/// Sends the cases round by round, so that changes follow epochs and checkpoints, and kills the engine now and then.
fn send_with_kills(project: &Project, cases: &[Case], seed: u64) -> Engine {
    let mut engine = Engine::start(project.path());
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..5 {
        let messages: Vec<Value> = cases.iter().filter_map(|case| case.messages.get(round).cloned()).chain([closing()]).collect();
        for part in messages.chunks(60) {
            engine.send(part);
            std::thread::sleep(Duration::from_millis(random.random_range(0..500)));
            if random.random_bool(0.5) {
                engine.kill();
                engine = Engine::start(project.path());
            }
        }
    }
    engine
}

#[test]
fn a_live_engine_that_is_killed_again_and_again_comes_to_the_same() {
    let cases = cases();
    let expected = expected(&cases);
    let project = project();
    send_with_kills(&project, &cases, 1).stop();
    assert_eq!(sql(project.path(), "SELECT count(*), count(DISTINCT id) FROM usage"), ["262,262"]);
    rate(&project, "closing.ndjson", &[closing()], &["--close"]);
    assert_in_force(&project, &expected);
}

#[test]
fn folded_windows_and_their_checkpoints_come_to_the_same() {
    let cases = cases();
    let (charges, events) = expected(&cases);
    let project =
        Project::new("[epoch]\ninterval = \"100 milliseconds\"\ncheckpoint = \"400 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
    let engine = send_with_kills(&project, &cases, 2);
    let expected: Vec<String> = charges
        .iter()
        .filter_map(|row| row.strip_prefix("energy,"))
        .map(|row| row.split(',').collect::<Vec<_>>())
        .map(|row| format!("{},{},{}", row[0], row[2], row[4]))
        .collect();
    let of_usage = |rows: Vec<String>| -> Vec<String> { rows.into_iter().filter(|row| !row.ends_with(",0")).collect() };
    assert_eq!(of_usage(running(&engine)), expected);
    engine.stop();
    let engine = Engine::start(project.path());
    assert_eq!(of_usage(running(&engine)), expected);
    engine.stop();
    assert_eq!(sql(project.path(), &EVENTS.replace("TABLE", "effective_usage")), events);
}

#[test]
fn an_amendment_moves_an_event_to_another_window_and_subject() {
    let project = Project::with_http();
    let engine = Engine::start(project.path());
    let original = kwh("a", "m1", "2026-09-10T00:00:00Z", "10");
    let others = [
        kwh("b", "m1", "2026-09-11T00:00:00Z", "1"),
        kwh("c", "m2", "2026-10-11T00:00:00Z", "2"),
        kwh("d", "m3", "2026-11-05T00:00:00Z", "0"),
    ];
    engine.send(&[&[original.clone()][..], &others].concat());
    let published = |months: usize| {
        let query = format!("SELECT count(DISTINCT billing_period) FROM charges HAVING count(DISTINCT billing_period) >= {months}");
        !String::from_utf8(ratemill(&["sql", "-C", project.text(), "-c", &query, "--format", "csv"], &[]).stdout)
            .unwrap()
            .lines()
            .skip(1)
            .collect::<String>()
            .is_empty()
    };
    wait("September and October are published", || published(2));
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,11,8.3", "cust-2,Energy,2026-10,EUR,2,5.6"]);
    let moved = kwh("a", "m2", "2026-10-10T00:00:00Z", "20");
    let change = amendment("a-1", 1, &moved);
    let answer = engine.send(std::slice::from_ref(&change));
    assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(1), &json!(0)), "{answer}");
    let both = "SELECT count(DISTINCT billing_period) FROM charges WHERE cause = 'void or amendment'";
    wait("both windows are corrected", || sql(project.path(), both) == ["2"]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,1,5.3", "cust-2,Energy,2026-10,EUR,22,11.6"]);
    // The same change again, alone and line by line; the version with another event; a void.
    let answer = engine.send(std::slice::from_ref(&change));
    assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(0), &json!(1)), "{answer}");
    let other = amendment("a-1b", 1, &kwh("a", "m2", "2026-10-10T00:00:00Z", "21"));
    let altered = amendment("a-1", 2, &moved);
    let body = lines(&[change, kwh("a", "m1", "2026-09-10T00:00:00Z", "10.0"), other.clone(), altered]);
    for _ in 0..2 {
        let (status, answer) = engine.post(&[("content-type", "application/x-ndjson")], body.as_bytes());
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((status, &answer["accepted"], &answer["duplicates"]), (200, &json!(0), &json!(2)), "{answer}");
        let refused: Vec<_> =
            answer["rejected"].as_array().unwrap().iter().map(|r| (r["index"].as_u64(), r["id"].as_str(), r["reason"].as_str())).collect();
        assert_eq!(refused, [(Some(2), Some("a-1b"), Some("amendment_conflict")), (Some(3), Some("a-1"), Some("identity_conflict"))]);
    }
    engine.send(&[void("b-void", "b")]);
    wait("the void is applied", || net(&project).len() == 1);
    engine.stop();
    let rejected = sql(project.path(), "SELECT reason, id FROM rejected ORDER BY reason");
    assert_eq!(rejected, ["amendment_conflict,a-1b", "identity_conflict,a-1"]);
    let engine = Engine::start(project.path());
    assert_eq!(engine.send(&[void("b-void", "b")])["duplicates"], json!(1));
    assert_eq!(engine.send(&[other])["rejected"][0]["reason"], json!("amendment_conflict"));
    engine.stop();
    assert_eq!(net(&project), ["cust-2,Energy,2026-10,EUR,22,11.6"]);
    // What was said stays readable.
    assert_eq!(
        sql(project.path(), "SELECT kind, id, target_id, version, new_subject, new_quantity FROM changes ORDER BY id"),
        ["amend,a-1,a,1,m2,20", "void,b-void,b,,,"]
    );
    assert_eq!(sql(project.path(), "SELECT attributes['data.why'] FROM changes WHERE kind = 'void'"), ["test"]);
    assert_eq!(sql(project.path(), "SELECT subject, quantity FROM usage WHERE id = 'a'"), ["m1,10"]);
    assert_eq!(sql(project.path(), "SELECT count(*) FROM effective_usage"), ["3"]);
}

#[test]
fn running_charges_follow_changes_at_once() {
    let ways = [("true", "100 milliseconds", "0 seconds"), ("true", "1 hour", "1 hour"), ("false", "100 milliseconds", "1 hour")];
    for (fold, interval, checkpoint) in ways {
        let project = Project::new(&format!(
            "[epoch]\ninterval = \"{interval}\"\nfold = {fold}\ncheckpoint = \"{checkpoint}\"\n[http]\nlisten = \"127.0.0.1:0\"\n"
        ));
        project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
        let mut engine = Engine::start(project.path());
        let steps = [
            (kwh("a", "m1", "2026-09-10T00:00:00Z", "10"), "cust-1", "10"),
            (amendment("x", 2, &kwh("a", "m2", "2026-09-11T00:00:00Z", "7")), "cust-2", "7"),
            (amendment("w", 1, &kwh("a", "m3", "2026-09-11T00:00:00Z", "9")), "cust-2", "7"),
            (void("y", "b"), "cust-2", "7"),
            (kwh("b", "m2", "2026-09-10T00:00:00Z", "10"), "cust-2", "7"),
            (kwh("c", "m2", "2026-09-10T00:00:00Z", "1"), "cust-2", "8"),
            (void("z", "a"), "cust-2", "1"),
        ];
        for (index, (message, customer, quantity)) in steps.iter().enumerate() {
            engine.send(std::slice::from_ref(message));
            let expected = [format!("{customer},2026-09-01T00:00:00Z,{quantity}")];
            assert_eq!(running(&engine), expected, "step {index}, fold {fold}, {interval}");
            if index % 2 == 0 {
                // The folded state is made again from what is in force.
                engine.stop();
                engine = Engine::start(project.path());
                assert_eq!(running(&engine), expected, "after a restart, step {index}, fold {fold}, {interval}");
            }
        }
        engine.stop();
    }
}

#[test]
fn bad_changes_are_named() {
    let project = Project::new(
        "[http]\nlisten = \"127.0.0.1:0\"\n[[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"50 milliseconds\"\npoll = \"50 milliseconds\"\nrecords = \"plain\"\nidentity = [\"subject\", \"meter\", \"time\"]\n",
    );
    let engine = Engine::start(project.path());
    let event = kwh("a", "m1", "2026-09-10T00:00:00Z", "10");
    let with = |path: &str, value: Value| {
        let mut change = amendment("x", 1, &event);
        *change.pointer_mut(path).unwrap() = value;
        change
    };
    let cases = [
        (with("/data/target", json!({"source": "test"})), "target_invalid"),
        (with("/data/target/id", json!("")), "target_invalid"),
        (with("/data/target/id", json!(7)), "target_invalid"),
        (with("/data/target/id", json!("b")), "target_invalid"),
        (with("/data/version", Value::Null), "version_invalid"),
        (with("/data/version", json!(0)), "version_invalid"),
        (with("/data/version", json!(1.5)), "version_invalid"),
        (with("/data/event", Value::Null), "amended_event_missing"),
        (with("/data/event/subject", Value::Null), "missing_subject"),
        (with("/data/event/time", json!("1999-01-01T00:00:00Z")), "time_too_old"),
        (with("/data/event/data/quantity", json!("many")), "quantity_not_a_number"),
        (with("/data/event/type", json!("ratemill.void")), "change_unsupported"),
        (with("/id", Value::Null), "missing_id"),
        (with("/source", json!("")), "empty_source"),
    ];
    for (change, reason) in &cases {
        let answer = engine.send(std::slice::from_ref(change));
        assert_eq!((&answer["accepted"], &answer["rejected"][0]["reason"]), (&json!(0), &json!(reason)), "{change}\n{answer}");
    }
    // Plain records have no target.
    project.drop_file("drop/a.csv", b"subject,meter,time,quantity\nm1,ratemill.void,2026-09-10T00:00:00Z,1\n");
    let query = "SELECT count(*) FROM rejected WHERE connector = 'drop' AND reason = 'change_unsupported'";
    wait("the row is rejected", || {
        ratemill(&["sql", "-C", project.text(), "-c", query, "--format", "csv"], &[]).stdout.ends_with(b"\n1\n")
    });
    let (status, _) = try_request(&engine.address, "GET", "/readyz", &[], b"").unwrap();
    assert_eq!(status, 200);
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*) FROM changes"), ["0"]);
}

#[test]
fn changes_come_over_mqtt_too() {
    let broker = Mosquitto::start();
    let project = Project::new(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[[mqtt]]\nname = \"meters\"\nurl = \"mqtt://127.0.0.1:{}\"\nclient_id = \"changes\"\ntopics = [\"meters/#\"]\n",
        broker.port
    ));
    let engine = Engine::start(project.path());
    wait("subscribed", || std::fs::read_to_string(project.path().join("engine.stderr")).unwrap().contains("subscribed"));
    let event = |quantity: &str| kwh("a", "m1", "2026-09-10T00:00:00Z", quantity);
    let messages =
        [amendment("x", 1, &event("2")), event("1"), amendment("y", 1, &event("3")), kwh("b", "m1", "2026-09-10T00:00:00Z", "4")];
    broker.publish("meters/a", &lines(&messages), 1, &[]);
    let count = || ratemill(&["sql", "-C", project.text(), "-c", "SELECT count(*) FROM usage", "--format", "csv"], &[]).stdout;
    wait("all is stored", || count().ends_with(b"\n2\n"));
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT id, quantity FROM effective_usage ORDER BY id"), ["a,2", "b,4"]);
    assert_eq!(sql(project.path(), "SELECT id, reason, position FROM rejected"), ["y,amendment_conflict,topic meters/a"]);
    let raw = sql(project.path(), "SELECT count(*) FROM rejected WHERE CAST(raw AS VARCHAR) LIKE '%\"id\":\"y\"%'");
    assert_eq!(raw, ["1"]);
}

//! `ratemill tap`: live rows of the usage log, beside the engine that writes it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::engine::{Engine, binary, ok, ratemill, sql, wait};
use crate::project::{Project, kwh, lines};

/// A tap that follows the log by now.
struct Tap(Child);

impl Tap {
    fn start(project: &Project, arguments: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args(["tap", "-C", project.text(), "--seconds", "80"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("following "), "{line}");
        Self(child)
    }

    /// The rows, once it has ended.
    fn rows(mut self) -> Vec<Value> {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.0.wait().unwrap().success());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["id"].as_str().unwrap_or("?")).collect()
}

fn meter(event: Value, meter: &str) -> Value {
    let mut event = event;
    event["type"] = json!(meter);
    event
}

#[test]
fn events_are_shown_as_they_are_acknowledged() {
    let project = Project::new(
        "[dimensions]\nregion = \"text\"\n[http]\nlisten = \"127.0.0.1:0\"\n[[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"50 milliseconds\"\npoll = \"50 milliseconds\"\n",
    );
    let engine = Engine::start(project.path());
    engine.send(&[kwh("before", "m1", "2026-09-03T10:00:00Z", "1")]);
    let all = Tap::start(&project, &["--limit", "6"]);
    let few = Tap::start(&project, &["--limit", "2"]);
    let of_meter = Tap::start(&project, &["--meter", "water", "--limit", "1"]);
    let of_subject = Tap::start(&project, &["--subject", "m2", "--limit", "2"]);
    let of_rule = Tap::start(&project, &["--rule", "energy", "--limit", "3"]);
    let of_drop = Tap::start(&project, &["--connector", "drop", "--limit", "1"]);
    let rejected = Tap::start(&project, &["--rejected", "--limit", "1"]);
    let mut first = kwh("a", "m1", "2026-09-03T10:00:00.5Z", "123456789012345678.000000000000000001");
    first["data"]["region"] = json!("north");
    first["data"]["operator"] = json!("night shift");
    engine.send(&[first, meter(kwh("b", "m2", "2026-09-03T10:00:00Z", "2"), "water")]);
    let mut wrong = kwh("wrong", "m1", "2026-09-03T10:00:00Z", "many");
    wrong["data"]["note"] = json!("as it came");
    engine.send(&[kwh("c", "m2", "2026-09-04T10:00:00Z", "3"), wrong]);
    project.drop_file("drop/d.ndjson", lines(&[kwh("d", "m1", "2026-09-05T10:00:00Z", "4")]).as_bytes());
    wait("the file is taken", || {
        let asked = ratemill(&["sql", "-C", project.text(), "-c", "SELECT count(*) FROM files", "--format", "csv"], &[]);
        String::from_utf8_lossy(&asked.stdout).lines().nth(1) == Some("1")
    });
    engine.send(&[json!({"specversion": "1.0", "source": "office", "id": "v", "type": "ratemill.void", "data": {"target": {"source": "test", "id": "a"}}})]);
    engine.send(&[kwh("e", "m9", "2026-09-06T10:00:00Z", "5")]);
    let rows = all.rows();
    assert_eq!(ids(&rows), ["a", "b", "c", "d", "v", "e"], "{rows:#?}");
    let a = &rows[0];
    assert_eq!((&a["record"], &a["connector"], &a["meter"]), (&json!("usage"), &json!("http"), &json!("kwh")), "{a:#}");
    assert_eq!(a["quantity"], json!("123456789012345678.000000000000000001"));
    assert_eq!((&a["time"], &a["region"]), (&json!("2026-09-03T10:00:00.500Z"), &json!("north")), "{a:#}");
    assert!(a["attributes"].as_object().unwrap().values().any(|value| value == "night shift"), "{a:#}");
    assert_eq!((&rows[4]["record"], &rows[4]["kind"], &rows[4]["target_id"]), (&json!("change"), &json!("void"), &json!("a")));
    assert_eq!(ids(&few.rows()), ["a", "b"]);
    assert_eq!(ids(&of_meter.rows()), ["b"]);
    assert_eq!(ids(&of_subject.rows()), ["b", "c"]);
    assert_eq!(ids(&of_rule.rows()), ["a", "c", "d"]);
    assert_eq!(ids(&of_drop.rows()), ["d"]);
    let rejected = rejected.rows();
    assert_eq!((&rejected[0]["reason"], &rejected[0]["id"]), (&json!("quantity_not_a_number"), &json!("wrong")), "{rejected:#?}");
    assert!(rejected[0]["raw"].as_str().unwrap().contains("as it came"));
    // Nothing of it is held up, cut or counted twice.
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*) FROM usage"), ["6"]);
    // The log is as it was: it can be followed without an engine, up to the time that was given.
    assert_eq!(ok(&["tap", "-C", project.text(), "--seconds", "0"]), "");
}

#[test]
fn what_the_log_still_holds_can_be_shown() {
    // No epoch: the log keeps all of it.
    let project = Project::new("[http]\nlisten = \"127.0.0.1:0\"\n[epoch]\ninterval = \"1 hour\"\n");
    let engine = Engine::start(project.path());
    for n in 0..5 {
        engine.send(&[kwh(&format!("e{n}"), "m1", "2026-09-03T10:00:00Z", "1")]);
    }
    engine.kill();
    let text = ok(&["tap", "-C", project.text(), "--held", "--seconds", "1"]);
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(ids(&rows), ["e0", "e1", "e2", "e3", "e4"]);
    // Over a restart the same log goes on.
    let tap = Tap::start(&project, &["--held", "--limit", "6"]);
    let engine = Engine::start(project.path());
    engine.send(&[kwh("later", "m1", "2026-09-03T10:00:00Z", "1")]);
    assert_eq!(ids(&tap.rows()), ["e0", "e1", "e2", "e3", "e4", "later"]);
    engine.stop();
}

#[test]
fn what_cannot_be_tapped_is_said() {
    let project = Project::with_http();
    let said = |arguments: &[&str]| {
        let output = ratemill(&[&["tap", "-C", project.text()], arguments].concat(), &[]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = said(&[]);
    assert!(code == Some(1) && message.contains("there is no usage log in"), "{code:?} {message}");
    let (code, message) = said(&["--rule", "enrgy"]);
    assert!(code == Some(2) && message.contains("did you mean `energy`"), "{code:?} {message}");
    let (code, message) = said(&["--connector", "htp"]);
    assert!(code == Some(2) && message.contains("did you mean `http`"), "{code:?} {message}");
}

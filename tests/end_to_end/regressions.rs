//! Faults that were found by trying to break Ratemill, each as it was found.

use std::io::Write;

use serde_json::json;

use crate::batch::net;
use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::project::{Project, kwh, lines, september};
use crate::servers::Mosquitto;

#[test]
fn a_dimension_that_is_declared_later_makes_no_conflict() {
    let project = Project::new("[http]\nlisten = \"127.0.0.1:0\"\n[epoch]\ninterval = \"1 hour\"\n[dimensions]\nsite = \"text\"\n");
    let engine = Engine::start(project.path());
    let events = september(20);
    engine.send(&events);
    // Nothing is in the lake yet: the log is read with the new schema.
    engine.kill();
    let toml = std::fs::read_to_string(project.path().join("ratemill.toml")).unwrap();
    project.write("ratemill.toml", &toml.replace("site = \"text\"", "region = \"text\"\nsite = \"text\""));
    let engine = Engine::start(project.path());
    let answer = engine.send(&events);
    assert_eq!((&answer["duplicates"], &answer["rejected"]), (&json!(20), &json!([])));
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*), count(region) FROM usage"), ["20,0"]);
}

#[test]
fn a_copied_log_cannot_take_the_lake() {
    let project = Project::with_http();
    let engine = Engine::start(project.path());
    engine.send(&september(5));
    engine.stop();
    let copy = Project::new(&format!("[lake]\nurl = \"{}/lake\"\n", project.text()));
    let copied = std::process::Command::new("cp").arg("-r").arg(project.path().join("log")).arg(copy.path()).status().unwrap();
    assert!(copied.success());
    // The copy goes on first, then the original comes back.
    let usage = copy.write("usage.ndjson", &lines(&september(6)));
    ok(&["rate", "-C", copy.text(), "--usage", usage.to_str().unwrap()]);
    let output = ratemill(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap()], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("another copy of the log"), "{stderr}");
}

#[test]
fn a_damaged_index_of_old_ids_is_rebuilt() {
    let project =
        Project::new("[http]\nlisten = \"127.0.0.1:0\"\n[epoch]\ninterval = \"200 milliseconds\"\ndedup_horizon = \"0 seconds\"\n");
    let events = september(300);
    let engine = Engine::start(project.path());
    engine.send(&events);
    project.wait_until_ids_aged();
    engine.stop();
    for damage in [|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2), |bytes: &mut Vec<u8>| bytes[5000] ^= 1] {
        let aged = project.files_of_ids("aged").remove(0);
        let mut bytes = std::fs::read(&aged).unwrap();
        damage(&mut bytes);
        std::fs::write(&aged, bytes).unwrap();
        let engine = Engine::start(project.path());
        assert_eq!(engine.send(&events)["duplicates"], 300);
        engine.stop();
    }
}

#[test]
fn a_half_sent_request_does_not_hold_the_stop() {
    let project = Project::with_http();
    let engine = Engine::start(project.path());
    let mut stream = std::net::TcpStream::connect(&engine.address).unwrap();
    stream.write_all(b"POST /v1/events HTTP/1.1\r\nhost: x\r\n").unwrap();
    let mut body = std::net::TcpStream::connect(&engine.address).unwrap();
    body.write_all(b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-type: application/cloudevents+json\r\ncontent-length: 100\r\n\r\n{")
        .unwrap();
    assert!(engine.stop().as_secs() < 10);
}

#[test]
fn an_oversize_message_is_rejected_and_the_next_is_taken() {
    for version in ["3.1.1", "5"] {
        let broker = Mosquitto::start();
        let project = Project::new(&format!(
            "[http]\nlisten = \"127.0.0.1:0\"\n[[mqtt]]\nname = \"m\"\nurl = \"mqtt://127.0.0.1:{}\"\nversion = \"{version}\"\nclient_id = \"big\"\ntopics = [\"m/#\"]\n",
            broker.port
        ));
        let engine = Engine::start(project.path());
        wait("subscribed", || std::fs::read_to_string(project.path().join("engine.stderr")).unwrap().contains("subscribed"));
        let mut big = kwh("big", "m1", "2026-09-01T10:00:00Z", "1");
        big["data"]["note"] = json!("n".repeat(2_000_000));
        broker.publish("m/a", &lines(&[big, kwh("small", "m1", "2026-09-01T10:00:00Z", "1")]), 1, &[]);
        wait("the small one is stored", || {
            let output = ratemill(&["sql", "-C", project.text(), "-c", "SELECT id FROM usage", "--format", "csv"], &[]);
            String::from_utf8(output.stdout).unwrap().contains("small")
        });
        engine.stop();
        assert_eq!(sql(project.path(), "SELECT reason FROM rejected"), ["record_too_large"], "version {version}");
    }
}

#[test]
fn no_message_may_speak_for_another_subject_than_its_topic() {
    let broker = Mosquitto::start();
    let project = Project::new(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[dimensions]\nsite = \"text\"\n[[mqtt]]\nname = \"m\"\nurl = \"mqtt://127.0.0.1:{}\"\nclient_id = \"bind\"\ntopics = [\"m/#\"]\npayload = \"json\"\n\
         template = \"m/{{site}}/{{subject}}\"\nidentity = [\"subject\", \"time\"]\nmapping = {{ subject = \"device\", meter = {{ constant = \"kwh\" }}, dimensions = {{ site = \"location\" }} }}\n",
        broker.port
    ));
    let engine = Engine::start(project.path());
    wait("subscribed", || std::fs::read_to_string(project.path().join("engine.stderr")).unwrap().contains("subscribed"));
    broker.publish("m/north/m1", "{\"device\":\"m2\",\"time\":\"2026-09-01T00:00:00Z\",\"quantity\":1}\n{\"location\":\"south\",\"time\":\"2026-09-01T00:00:00Z\",\"quantity\":1}\n{\"time\":\"2026-09-01T00:00:00Z\",\"quantity\":1}\n", 1, &[]);
    wait("all are judged", || {
        let output = ratemill(&["sql", "-C", project.text(), "-c", "SELECT reason FROM rejected", "--format", "csv"], &[]);
        String::from_utf8(output.stdout).unwrap().lines().count() == 3
    });
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT DISTINCT reason FROM rejected"), ["topic_mismatch"]);
    assert_eq!(sql(project.path(), "SELECT subject, site FROM usage"), ["m1,north"]);
}

#[test]
fn shapes_that_would_charge_twice_or_drop_the_time_are_refused() {
    let head = "CREATE MATERIALIZED VIEW r WITH (window = 'month', effective_from = '2026-09-01') AS\n";
    let columns = "SELECT c.customer_id, 'x' AS item, sum(u.quantity) AS amount, c.currency FROM";
    let group = "GROUP BY c.customer_id, c.currency\n";
    for (from, expected) in [
        (
            "(usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject) JOIN prices p ON p.plan = c.plan",
            "without parentheses",
        ),
        ("usage u JOIN contracts FOR SYSTEM_TIME AS OF c.valid_from AS c ON c.subject = u.subject", "itself"),
        ("usage u JOIN contracts c ON c.subject = u.subject AND c.valid_from <= u.time", "the join says no time"),
        ("contracts FOR SYSTEM_TIME AS OF u.time AS c LEFT JOIN usage u ON c.subject = u.subject", "first table of an outer join"),
        ("(SELECT * FROM usage) u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject", "cannot be checked"),
        (
            "usage u JOIN usage v ON v.id = u.id JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject",
            "joined with itself",
        ),
    ] {
        let project = Project::new("");
        project.write("rules/r.sql", &format!("{head}{columns} {from} {group}"));
        let output = ratemill(&["check", project.text()], &[]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "{from}: {stdout}");
        assert!(stdout.contains(expected), "{from}: {expected} is not in\n{stdout}");
    }
    for (amount, expected) in [
        ("sum(u.quantity) * 1e-19", "more than 18 digits"),
        ("sum(u.quantity) * 10 ^ 2", "^ is no power"),
        ("CAST(sum(u.quantity) / 3 AS DECIMAL(50, 2))", "38 digits"),
    ] {
        let project = Project::new("");
        project.write("rules/r.sql", &format!("{head}SELECT u.subject AS customer_id, 'x' AS item, {amount} AS amount, 'EUR' AS currency FROM usage u GROUP BY u.subject\n"));
        let output = ratemill(&["check", project.text()], &[]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.code() == Some(3) && stdout.contains(expected), "{amount}: {stdout}");
    }
}

#[test]
fn what_meets_several_rows_by_an_overlapping_predicate_is_found_at_run_time() {
    let project = Project::new("");
    project.write(
        "reference/contracts.csv",
        "subject,customer_id,plan,currency,valid_from,valid_to\nm1,a,home,EUR,2026-01-01,2026-09-15\nm1,b,home,EUR,2026-09-15,\n",
    );
    project.write(
        "rules/r.sql",
        "CREATE MATERIALIZED VIEW r WITH (window = 'month', effective_from = '2026-09-01') AS
SELECT c.customer_id, 'x' AS item, sum(u.quantity) AS amount, c.currency FROM usage u, billing_window w, contracts c
WHERE c.subject = u.subject AND c.valid_from < w.window_end AND (c.valid_to IS NULL OR c.valid_to > w.window_start)
GROUP BY c.customer_id, c.currency
",
    );
    let usage = project.write("usage.ndjson", &lines(&[kwh("a", "m1", "2026-09-02T00:00:00Z", "1")]));
    let output = ratemill(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && stderr.contains("several rows of `contracts`"), "{stderr}");
}

#[test]
fn a_published_rule_that_goes_or_changes_its_windows_is_refused_and_late_usage_stays_its_own() {
    let project = Project::new("");
    let usage = project.write("usage.ndjson", &lines(&[kwh("a", "m1", "2026-09-02T00:00:00Z", "10")]));
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    let rule = std::fs::read_to_string(project.path().join("rules/energy.sql")).unwrap();
    for (changed, expected) in
        [(rule.replace("VIEW energy", "VIEW power"), "its file is gone"), (rule.replace("'UTC'", "'Asia/Tokyo'"), "cut differently")]
    {
        project.write("rules/energy.sql", &changed);
        let output = ratemill(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap()], &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(3) && stderr.contains(expected), "{stderr}");
    }
    // The rule reads another meter now; September was published with the old one.
    project.write("rules/energy.sql", &rule.replace("u.meter = 'kwh'", "u.meter = 'mwh'"));
    let late = project.write("late.ndjson", &lines(&[kwh("b", "m1", "2026-09-03T00:00:00Z", "1")]));
    ok(&["rate", "-C", project.text(), "--usage", late.to_str().unwrap()]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,11,8.3"]);
}

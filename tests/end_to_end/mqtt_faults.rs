//! A broker that forgets its sessions, a stranger with the same client id, and messages that are too large.

use std::process::Command;

use crate::engine::{Engine, sql, wait};
use crate::project::{Project, lines, september};
use crate::servers::Mosquitto;

fn project(broker: &Mosquitto, version: &str) -> Project {
    Project::new(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[[mqtt]]\nname = \"meters\"\nurl = \"mqtt://127.0.0.1:{}\"\nversion = \"{version}\"\nclient_id = \"ratemill-test\"\ntopics = [\"meters/#\"]\n",
        broker.port
    ))
}

/// How often the engine says this in its log.
fn said(project: &Project, what: &str) -> usize {
    std::fs::read_to_string(project.path().join("engine.stderr")).unwrap_or_default().matches(what).count()
}

fn count(project: &Project, table: &str) -> usize {
    let output =
        crate::engine::ratemill(&["sql", "-C", project.text(), "-c", &format!("SELECT count(*) FROM {table}"), "--format", "csv"], &[]);
    String::from_utf8(output.stdout).unwrap().lines().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[test]
fn a_broker_that_forgets_its_sessions_is_subscribed_to_again() {
    for version in ["3.1.1", "5"] {
        let mut broker = Mosquitto::start();
        let project = project(&broker, version);
        let engine = Engine::start(project.path());
        wait("subscribed", || said(&project, "subscribed") == 1);
        let events = september(300);
        broker.publish("meters/a", &lines(&events[..150]), 1, &[]);
        wait("the first part is stored", || count(&project, "usage") == 150);
        broker.forget();
        wait("subscribed again", || said(&project, "subscribed") == 2);
        // Senders repeat what they are unsure of.
        broker.publish("meters/a", &lines(&events[100..]), 1, &[]);
        wait("everything is stored", || count(&project, "usage") == 300);
        engine.stop();
        assert_eq!(sql(project.path(), "SELECT count(*), count(DISTINCT id) FROM usage"), ["300,300"], "version {version}");
    }
}

#[test]
fn a_stranger_with_the_same_client_id_costs_no_usage() {
    for version in ["3.1.1", "5"] {
        let broker = Mosquitto::start();
        let project = project(&broker, version);
        let engine = Engine::start(project.path());
        wait("subscribed", || said(&project, "subscribed") == 1);
        let events = september(400);
        broker.publish("meters/a", &lines(&events[..200]), 1, &[]);
        // It takes the session over, and comes again when it is thrown out itself.
        let port = broker.port.to_string();
        let mut stranger = Command::new("mosquitto_sub")
            .args(["-h", "127.0.0.1", "-p", &port, "-i", "ratemill-test", "-c", "-q", "1", "-t", "elsewhere", "-W", "3"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait("the engine is thrown out", || said(&project, "lost the broker") > 0);
        stranger.wait().unwrap();
        let connected = |engine: &Engine| {
            engine.get("/metrics").1.lines().any(|line| line.starts_with("ratemill_mqtt_connected") && line.ends_with(" 1"))
        };
        wait("the engine is back", || connected(&engine) && said(&project, "subscribed") >= said(&project, "connected to the broker"));
        // What the stranger took instead of the engine is sent again, as by any sender who is unsure.
        broker.publish("meters/a", &lines(&events), 1, &[]);
        wait("everything is stored", || count(&project, "usage") == 400);
        engine.stop();
        assert_eq!(sql(project.path(), "SELECT count(*), count(DISTINCT id) FROM usage"), ["400,400"], "version {version}");
    }
}

#[test]
fn a_message_that_is_too_large_is_rejected_and_stands_in_no_other_s_way() {
    for version in ["3.1.1", "5"] {
        let broker = Mosquitto::start();
        let project = project(&broker, version);
        let engine = Engine::start(project.path());
        wait("subscribed", || said(&project, "subscribed") == 1);
        let events = september(20);
        let mut large = events[0].clone();
        large["data"]["blob"] = "b".repeat(2_000_000).into();
        broker.publish("meters/a", &lines(&events[..10]), 1, &[]);
        broker.publish("meters/a", &lines(&[large]), 1, &[]);
        broker.publish("meters/a", &lines(&events[10..]), 1, &[]);
        wait("all are judged", || count(&project, "usage") == 20 && count(&project, "rejected") == 1);
        // It is acknowledged: a restart brings it no second time.
        engine.stop();
        let engine = Engine::start(project.path());
        wait("subscribed", || said(&project, "subscribed") == 2);
        engine.stop();
        assert_eq!(sql(project.path(), "SELECT reason, position FROM rejected"), ["record_too_large,topic meters/a"], "version {version}");
    }
}

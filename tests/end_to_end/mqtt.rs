//! MQTT against a real Mosquitto: both versions, sessions, restarts, identity, TLS and passwords.

use std::process::Command;

use crate::engine::{Engine, sql, wait};
use crate::project::{Project, kwh, lines, september};
use crate::servers::Mosquitto;

fn project(broker: &Mosquitto, version: &str, more: &str) -> Project {
    Project::new(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[[mqtt]]\nname = \"meters\"\nurl = \"mqtt://127.0.0.1:{}\"\nversion = \"{version}\"\nclient_id = \"ratemill-test\"\ntopics = [\"meters/#\"]\n{more}",
        broker.port
    ))
}

fn usage(project: &Project) -> usize {
    let output = crate::engine::ratemill(&["sql", "-C", project.text(), "-c", "SELECT count(*) FROM usage", "--format", "csv"], &[]);
    String::from_utf8(output.stdout).unwrap().lines().nth(1).and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn connected(engine: &Engine) -> bool {
    engine.get("/metrics").1.lines().any(|line| line.starts_with("ratemill_mqtt_connected") && line.ends_with(" 1"))
}

#[test]
fn a_broker_restart_and_repeated_delivery_lose_and_double_nothing() {
    for version in ["3.1.1", "5"] {
        let mut broker = Mosquitto::start();
        let project = project(&broker, version, "");
        let engine = Engine::start(project.path());
        wait("connected", || connected(&engine));
        let events = september(600);
        broker.publish("meters/a", &lines(&events[..200]), 1, &[]);
        wait("the first part is stored", || usage(&project) == 200);
        broker.restart();
        broker.publish("meters/b", &lines(&events[100..400]), 1, &[]);
        // The engine is away: the broker keeps its session.
        engine.kill();
        broker.publish("meters/c", &lines(&events[400..]), 1, &[]);
        let engine = Engine::start(project.path());
        wait("everything is stored", || usage(&project) == 600);
        broker.publish("meters/c", &lines(&events[..50]), 1, &[]);
        // At least those: the broker delivers again what was not acknowledged before the kill.
        let duplicates = || {
            let (_, metrics) = engine.get("/metrics");
            let line = metrics.lines().find(|line| line.contains("connector=\"meters\",outcome=\"duplicate\""))?.to_owned();
            line.rsplit(' ').next()?.parse::<u64>().ok()
        };
        wait("the repeated messages are seen as duplicates", || duplicates().is_some_and(|count| count >= 50));
        assert!(engine.stop().as_secs() < 10);
        assert_eq!(sql(project.path(), "SELECT count(*), count(DISTINCT id) FROM usage"), ["600,600"], "version {version}");
    }
}

#[test]
fn plain_json_with_a_template_an_identity_and_qos_0_refused() {
    let broker = Mosquitto::start();
    let project = project(
        &broker,
        "5",
        "template = \"meters/{site}/{subject}/{meter}\"\npayload = \"json\"\nidentity = [\"subject\", \"meter\", \"time\"]\nmapping = { quantity = \"reading.kwh\", time = \"ts\", time_format = \"unix_seconds\" }\n[dimensions]\nsite = \"text\"\n",
    );
    let engine = Engine::start(project.path());
    wait("connected", || connected(&engine));
    let message = r#"{"ts": 1788220800, "reading": {"kwh": 1.10}, "firmware": "2.1"}"#;
    for _ in 0..3 {
        broker.publish("meters/north/m1/kwh", &format!("{message}\n"), 1, &[]);
    }
    broker.publish("meters/north/m1/kwh", &format!("{message}\n"), 0, &[]);
    broker.publish("meters/north/m1", &format!("{message}\n"), 1, &[]);
    broker.publish("meters/north/m1/kwh", "{\"ts\": 1788220800, \"reading\": {\"kwh\": 2}}\nrubbish\n", 1, &[]);
    wait("all are judged", || {
        let output = crate::engine::ratemill(
            &["sql", "-C", project.text(), "-c", "SELECT reason FROM rejected ORDER BY reason", "--format", "csv"],
            &[],
        );
        String::from_utf8(output.stdout).unwrap().lines().count() == 5
    });
    engine.stop();
    assert_eq!(
        sql(project.path(), "SELECT reason FROM rejected ORDER BY reason"),
        ["identity_conflict", "not_json", "qos_too_low", "topic_mismatch"]
    );
    assert_eq!(
        sql(project.path(), "SELECT id, site, quantity, attributes['firmware'] FROM usage"),
        ["m1|kwh|2026-09-01T00:00:00Z,north,1.1,2.1"]
    );
}

#[test]
fn tls_password_and_a_shared_subscription() {
    let openssl = |folder: &std::path::Path, arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let broker = Mosquitto::start_with(
        "allow_anonymous false\npassword_file DIR/users\ncafile DIR/ca.pem\ncertfile DIR/server.pem\nkeyfile DIR/server.key\n",
        |folder| {
            openssl(
                folder,
                &[
                    "req",
                    "-x509",
                    "-newkey",
                    "rsa:2048",
                    "-nodes",
                    "-keyout",
                    "ca.key",
                    "-out",
                    "ca.pem",
                    "-subj",
                    "/CN=test-ca",
                    "-days",
                    "2",
                ],
            );
            openssl(
                folder,
                &["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost"],
            );
            std::fs::write(folder.join("san"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
            openssl(
                folder,
                &[
                    "x509",
                    "-req",
                    "-in",
                    "server.csr",
                    "-CA",
                    "ca.pem",
                    "-CAkey",
                    "ca.key",
                    "-CAcreateserial",
                    "-out",
                    "server.pem",
                    "-days",
                    "2",
                    "-extfile",
                    "san",
                ],
            );
            let made = Command::new("mosquitto_passwd")
                .args(["-b", "-c"])
                .arg(folder.join("users"))
                .args(["fleet", "pass-word-9"])
                .status()
                .unwrap();
            assert!(made.success());
            for file in ["users", "server.key", "server.pem", "ca.pem"] {
                std::fs::set_permissions(folder.join(file), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
            }
        },
    );
    let project = Project::new(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[[mqtt]]\nname = \"fleet\"\nurl = \"mqtts://localhost:{}\"\nclient_id = \"ratemill-tls\"\ntopics = [\"$share/billing/meters/#\", \"other/+\"]\nusername = \"fleet\"\npassword = \"${{FLEET_PASSWORD}}\"\nca_file = \"{}/ca.pem\"\n",
        broker.port,
        broker.folder().display()
    ));
    let password = [("FLEET_PASSWORD".to_owned(), "pass-word-9".to_owned())];
    let engine = Engine::start_with(project.path(), &password);
    wait("connected", || connected(&engine));
    let ca = broker.folder().join("ca.pem");
    let options = ["-u", "fleet", "-P", "pass-word-9", "--cafile", ca.to_str().unwrap()];
    let events = september(20);
    // The subscription is answered after the connection; QoS 1 messages before it would go to nobody.
    std::thread::sleep(std::time::Duration::from_millis(500));
    broker.publish("meters/x", &lines(&events[..10]), 1, &options);
    broker.publish("other/y", &lines(&events[10..]), 1, &options);
    let stored = || {
        let output =
            crate::engine::ratemill(&["sql", "-C", project.text(), "-c", "SELECT count(*) FROM usage", "--format", "csv"], &password);
        String::from_utf8(output.stdout).unwrap().lines().nth(1) == Some("20")
    };
    wait("all are stored", stored);
    engine.stop();
    let log = std::fs::read_to_string(project.path().join("engine.stderr")).unwrap();
    assert!(!log.contains("pass-word-9"), "the password is in the log:\n{log}");
}

#[test]
fn binary_cloud_events_with_user_properties() {
    let broker = Mosquitto::start();
    let project = project(&broker, "5", "");
    let engine = Engine::start(project.path());
    wait("connected", || connected(&engine));
    let event = kwh("x", "m1", "2026-09-01T10:00:00Z", "1");
    let mut options = vec!["-V", "5", "-D", "publish", "content-type", "application/json"];
    for (name, value) in
        [("specversion", "1.0"), ("id", "bin-1"), ("source", "test"), ("type", "kwh"), ("subject", "m1"), ("time", "2026-09-01T10:00:00Z")]
    {
        options.extend(["-D", "publish", "user-property", name, value]);
    }
    broker.publish("meters/x", &format!("{}\n", event["data"]), 1, &options);
    wait("it is stored", || usage(&project) == 1);
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT id, quantity FROM usage"), ["bin-1,1"]);
}

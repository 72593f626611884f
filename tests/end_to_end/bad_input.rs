//! Bad input of every kind: named, kept, out of the way of good input, and replayed once its cause is mended.

use std::collections::BTreeSet;
use std::io::Write;

use serde_json::{Value, json};

use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::project::{Project, kwh};
use crate::servers::Mosquitto;

/// A good event with one thing changed; `null` takes a field away.
fn with(name: &str, value: Value) -> Value {
    let mut event = kwh("x", "m1", "2026-09-01T10:00:00Z", "1");
    match name.strip_prefix("data.") {
        Some(inner) if value.is_null() => drop(event["data"].as_object_mut().unwrap().remove(inner)),
        Some(inner) => event["data"][inner] = value,
        None if value.is_null() => drop(event.as_object_mut().unwrap().remove(name)),
        None => event[name] = value,
    }
    event
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!({ "a": inner }))
}

/// One element of a batch, as text, and the reason that must be given.
fn events() -> Vec<(String, &'static str)> {
    let text = |event: Value| event.to_string();
    let good = text(kwh("x", "m1", "2026-09-01T10:00:00Z", "1"));
    vec![
        ("17".into(), "not_an_object"),
        ("[]".into(), "not_an_object"),
        ("\"text\"".into(), "not_an_object"),
        (good.replacen("\"id\":\"x\"", "\"id\":\"x\",\"id\":\"y\"", 1), "duplicate_field"),
        (text(with("specversion", Value::Null)), "missing_specversion"),
        (text(with("specversion", json!("0.3"))), "unsupported_specversion"),
        (text(with("specversion", json!(1.0))), "unsupported_specversion"),
        (text(with("id", Value::Null)), "missing_id"),
        (text(with("id", json!(""))), "empty_id"),
        (text(with("id", json!(17))), "id_not_text"),
        (text(with("id", json!(["x"]))), "id_not_text"),
        (text(with("id", json!("i".repeat(2000)))), "field_too_long"),
        (text(with("id", json!("a\u{0}b"))), "control_character"),
        (text(with("source", Value::Null)), "missing_source"),
        (text(with("source", json!(""))), "empty_source"),
        (text(with("source", json!(true))), "source_not_text"),
        (text(with("type", Value::Null)), "missing_meter"),
        (text(with("type", json!(""))), "empty_meter"),
        (text(with("type", json!(5))), "meter_not_text"),
        (text(with("type", json!("ratemill.void"))), "target_invalid"),
        (text(with("subject", Value::Null)), "missing_subject"),
        (text(with("subject", json!(""))), "empty_subject"),
        (text(with("subject", json!(7))), "subject_not_text"),
        (text(with("time", Value::Null)), "missing_time"),
        (text(with("time", json!("yesterday"))), "time_invalid"),
        (text(with("time", json!("2026-02-30T00:00:00Z"))), "time_invalid"),
        (text(with("time", json!("2026-09-01T10:00:00"))), "time_invalid"),
        (text(with("time", json!(1_788_220_800))), "time_invalid"),
        (text(with("time", json!("1970-01-01T00:00:00Z"))), "time_too_old"),
        (text(with("time", json!("2999-01-01T00:00:00Z"))), "time_in_future"),
        (text(with("data.end", json!("later"))), "end_invalid"),
        (text(with("data.end", json!("2026-08-01T00:00:00Z"))), "end_before_time"),
        (text(with("data", Value::Null)), "missing_data"),
        (text(with("data", json!("1"))), "data_not_an_object"),
        (text(with("data", json!([1]))), "data_not_an_object"),
        (text(with("data_base64", json!("AA=="))), "data_is_binary"),
        (text(with("datacontenttype", json!("text/xml"))), "data_is_binary"),
        (text(with("data.quantity", Value::Null)), "missing_quantity"),
        (text(with("data.quantity", json!("many"))), "quantity_not_a_number"),
        (text(with("data.quantity", json!("NaN"))), "quantity_not_a_number"),
        (text(with("data.quantity", json!(true))), "quantity_not_a_number"),
        (text(with("data.quantity", json!("1,5"))), "quantity_not_a_number"),
        (text(with("data.quantity", json!("0.0000000000000000001"))), "quantity_too_precise"),
        (text(with("data.quantity", json!("1e300"))), "quantity_too_large"),
        (text(with("data.floor", json!("third"))), "dimension_invalid"),
        (text(with("Upper-Case", json!("x"))), "attribute_invalid"),
        (text(with("data.deep", nested(40))), "too_deep"),
        (text(with("data.blob", json!("b".repeat(300_000)))), "record_too_large"),
    ]
}

/// Headers, body, and the status and title that must be given.
type BadBody = (Vec<(&'static str, &'static str)>, Vec<u8>, u16, &'static str);

fn bodies() -> Vec<BadBody> {
    let good = json!([kwh("never", "m1", "2026-09-01T10:00:00Z", "1")]).to_string().into_bytes();
    let batch = ("content-type", "application/cloudevents-batch+json");
    let truncated_gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&good).unwrap();
        let mut bytes = encoder.finish().unwrap();
        bytes.truncate(bytes.len() / 2);
        bytes
    };
    let bomb = zstd::encode_all(&vec![b' '; 64 << 20][..], 3).unwrap();
    let many = json!(vec![1; 20_000]).to_string().into_bytes();
    let structured = ("content-type", "application/cloudevents+json");
    vec![
        (vec![batch], b"".to_vec(), 400, "Empty body"),
        (vec![batch], b"{".to_vec(), 400, "Malformed body"),
        (vec![batch], b"{}".to_vec(), 400, "Malformed body"),
        (vec![batch], b"[{},]".to_vec(), 400, "Malformed body"),
        (vec![batch], b"\xff\xfe".to_vec(), 400, "Malformed body"),
        (vec![structured], b"[1]".to_vec(), 400, "Malformed body"),
        (vec![structured], b"{} {}".to_vec(), 400, "Malformed body"),
        (vec![("content-type", "application/x-ndjson")], b"rubbish\nmore rubbish\n".to_vec(), 400, "Malformed body"),
        (vec![batch, ("content-encoding", "gzip")], truncated_gzip, 400, "Damaged body"),
        (vec![batch, ("content-encoding", "gzip")], b"not gzip".to_vec(), 400, "Damaged body"),
        (vec![batch, ("content-encoding", "br")], good.clone(), 415, "Unsupported content encoding"),
        (vec![batch, ("content-encoding", "zstd")], bomb, 413, "Body too large"),
        (vec![batch], vec![b'['; 9 << 20], 413, "Body too large"),
        (vec![batch], many, 413, "Body too large"),
        (vec![], good.clone(), 415, "Unsupported media type"),
        (vec![("content-type", "text/plain")], good.clone(), 415, "Unsupported media type"),
        (vec![("content-type", "application/cloudevents+avro")], good.clone(), 415, "Unsupported media type"),
        (vec![("content-type", "application/cloudevents+json; charset=latin1")], good.clone(), 415, "Unsupported media type"),
        (vec![("content-type", ";;;")], good, 415, "Unsupported media type"),
        (vec![("content-type", "application/json"), ("ce-id", "%zz")], b"{}".to_vec(), 400, "Malformed header"),
        (vec![("content-type", "application/json"), ("ce-datacontenttype", "application/json")], b"{}".to_vec(), 400, "Malformed header"),
    ]
}

/// Files of a drop, and the reason that must be given for them or their bad row.
fn files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let header = "id,subject,meter,time,quantity\n";
    let csv = |rows: &str| format!("{header}{rows}").into_bytes();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(csv("g,m1,kwh,2026-09-01T00:00:00Z,1\n").repeat(2000).as_slice()).unwrap();
    let mut truncated = gz.finish().unwrap();
    truncated.truncate(truncated.len() / 2);
    vec![
        ("count.csv", csv("a,m1,kwh\n"), "csv_field_count"),
        ("utf8.csv", [header.as_bytes(), b"b,m\xff1,kwh,2026-09-01T00:00:00Z,1\n"].concat(), "not_utf8"),
        ("empty-id.csv", csv(",m1,kwh,2026-09-01T00:00:00Z,1\n"), "missing_id"),
        ("column.csv", b"id,subject,meter,time\nc,m1,kwh,2026-09-01T00:00:00Z\n".to_vec(), "column_missing"),
        ("twice.csv", b"id,id,subject,meter,time,quantity\n".to_vec(), "header_invalid"),
        ("empty.csv", b"".to_vec(), "header_invalid"),
        ("quote.csv", csv("q1,m1,kwh,2026-09-01T00:00:00Z,\"1\"x\n"), "csv_malformed"),
        ("open-quote.csv", csv("q2,m1,kwh,2026-09-01T00:00:00Z,\"1\n"), "csv_malformed"),
        ("cr.csv", b"id,subject,meter,time,quantity\rc,m1,kwh,2026-09-01T00:00:00Z,1\r".to_vec(), "header_invalid"),
        ("not.parquet", b"PAR1 but not really".to_vec(), "file_unreadable"),
        ("unknown.xlsx", b"PK".to_vec(), "file_unreadable"),
        ("torn.csv.gz", truncated, "file_compression_corrupt"),
        ("not-gz.csv.gz", b"plain".to_vec(), "file_compression_corrupt"),
        ("quantity.csv", csv("d,m1,kwh,2026-09-01T00:00:00Z,1.2.3\n"), "quantity_not_a_number"),
    ]
}

#[test]
fn sixty_kinds_of_bad_input_and_good_rows_beside_them() {
    let broker = Mosquitto::start();
    let project = Project::new(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[dimensions]\nfloor = \"integer\"\n[[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"100 milliseconds\"\npoll = \"50 milliseconds\"\nmapping = {{ id = \"id\" }}\n\
         [[mqtt]]\nname = \"meters\"\nurl = \"mqtt://127.0.0.1:{}\"\nclient_id = \"bad\"\ntopics = [\"meters/#\"]\npayload = \"json\"\nidentity = [\"serial\", \"time\"]\ntemplate = \"meters/{{subject}}/{{meter}}\"\n",
        broker.port
    ));
    let engine = Engine::start(project.path());
    let mut cases = 0;
    let mut reasons: BTreeSet<String> = BTreeSet::new();
    let mut good = 0;

    for (body, reason) in events() {
        let neighbour = kwh(&format!("good-{good}"), "m1", "2026-09-01T10:00:00Z", "1");
        let (status, answer) =
            engine.post(&[("content-type", "application/cloudevents-batch+json")], format!("[{body},{neighbour}]").as_bytes());
        assert_eq!(status, 200, "{reason}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["accepted"], 1, "{reason}: {answer}");
        assert_eq!(
            (&answer["rejected"][0]["reason"], &answer["rejected"][0]["index"]),
            (&json!(reason), &json!(0)),
            "{answer} for {body:.200}"
        );
        assert!(!answer["rejected"][0]["message"].as_str().unwrap().is_empty());
        reasons.insert(reason.to_owned());
        cases += 1;
        good += 1;
    }
    for (headers, body, status, title) in bodies() {
        let (found, answer) = engine.post(&headers, &body);
        assert_eq!(found, status, "{headers:?} {title}: {answer}");
        let problem: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!((&problem["title"], &problem["status"]), (&json!(title), &json!(status)), "{answer}");
        reasons.insert(format!("{status} {title}"));
        cases += 1;
    }
    for (name, content, reason) in files() {
        project.drop_file(&format!("drop/{name}"), &content);
        reasons.insert(reason.to_owned());
        cases += 1;
    }
    project.drop_file(
        "drop/mixed.csv",
        b"id,subject,meter,time,quantity\nf1,m1,kwh,2026-09-01T00:00:00Z,2\nf2,m1,kwh,never,2\nf3,m1,kwh,2026-09-01T00:00:00Z,2\n",
    );
    let message = "{\"serial\": \"s1\", \"time\": \"2026-09-01T00:00:00Z\", \"quantity\": 3}\n";
    wait("subscribed", || std::fs::read_to_string(project.path().join("engine.stderr")).unwrap().contains("subscribed"));
    for (topic, payload, qos, reason) in [
        ("meters/m1/kwh", "\u{1}garbage\n", 1, "not_json"),
        ("meters/m1", message, 1, "topic_mismatch"),
        ("meters/m1/kwh", "{\"time\": \"2026-09-01T00:00:00Z\", \"quantity\": 3}\n", 1, "identity_incomplete"),
        ("meters/m1/kwh", message, 0, "qos_too_low"),
    ] {
        broker.publish(topic, payload, qos, &[]);
        reasons.insert(reason.to_owned());
        cases += 1;
    }
    broker.publish("meters/m1/kwh", message, 1, &[]);
    let expected_rejected = events().len() + files().len() + 1 + 4;
    let count = |table: &str| {
        let output = ratemill(&["sql", "-C", project.text(), "-c", &format!("SELECT count(*) FROM {table}"), "--format", "csv"], &[]);
        String::from_utf8(output.stdout).unwrap().lines().nth(1).and_then(|line| line.parse::<usize>().ok()).unwrap_or(0)
    };
    wait("all files are judged", || count("files") == files().len() + 1);
    wait("all messages are judged", || count("usage") >= good + 3);
    engine.stop();
    // Of the torn file, the rows before the tear are kept; they are all one event.
    let torn = sql(project.path(), "SELECT count(*) FROM usage WHERE id = 'g'")[0].parse::<usize>().unwrap();
    assert_eq!(count("usage"), good + 2 + 1 + torn, "the good rows beside the bad ones are there");
    let listed = sql(project.path(), "SELECT reason, position FROM rejected");
    for (name, _, reason) in files() {
        assert!(listed.iter().any(|line| line.starts_with(&format!("{reason},{name}"))), "{name}: {reason} is not in {listed:#?}");
    }
    assert!(listed.iter().any(|line| line == "time_invalid,mixed.csv line 3"), "{listed:#?}");
    // The torn file may have more than one bad row: its header stands in it two thousand times.
    assert!(listed.len() >= expected_rejected, "{} rejected, at least {expected_rejected} expected", listed.len());
    println!("bad input: {cases} cases, {} distinct reasons", reasons.len());
    assert!(cases >= 60 && reasons.len() >= 40, "{cases} cases, {} reasons", reasons.len());
}

#[test]
fn bad_configurations_say_where_and_what_to_write() {
    let cases: [(&str, i32, &str); 14] = [
        ("[lake]\nurll = \"x\"\n", 2, "did you mean `url`?"),
        ("[lakes]\nurl = \"x\"\n", 2, "did you mean `lake`?"),
        ("[lake\n", 2, "ratemill.toml:"),
        ("[http]\nlisten = \"0.0.0.0:1\"\n", 2, "[[http.keys]]"),
        ("[http]\nlisten = \"localhost\"\n", 2, "ratemill.toml:"),
        ("[http]\nkeys = [{ name = \"a\", sha256 = \"xyz\" }]\n", 2, "64 hexadecimal digits"),
        ("[billing]\ntimezone = \"Europe/Londn\"\n", 2, "did you mean `Europe/London`?"),
        ("[log]\nquota = \"many\"\n", 2, "is not a size"),
        ("[epoch]\ninterval = \"often\"\n", 2, "is not a duration"),
        ("[dimensions]\ntime = \"text\"\n", 2, "call it something else"),
        ("[[files]]\nname = \"a\"\nurl = \"x\"\nformat = \"csv\"\n", 2, "never arrival time"),
        ("[[mqtt]]\nname = \"a\"\nurl = \"http://x\"\nclient_id = \"c\"\ntopics = [\"t\"]\n", 2, "mqtt://host"),
        ("[[mqtt]]\nname = \"a\"\nurl = \"mqtt://x\"\nclient_id = \"c\"\ntopics = [\"t\"]\ntemplate = \"a{b}\"\n", 2, "template segment"),
        ("[lake]\nurl = \"${RATEMILL_UNSET_VARIABLE}\"\n", 2, "RATEMILL_UNSET_VARIABLE is not set"),
    ];
    for (toml, code, expected) in cases {
        let project = Project::new("");
        project.write("ratemill.toml", toml);
        let output = ratemill(&["check", project.text()], &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{toml}: {stderr}");
        assert!(stderr.contains(expected), "{toml}: {stderr}");
    }
}

#[test]
fn bad_rules_and_reference_data_are_underlined() {
    let head = "CREATE MATERIALIZED VIEW r WITH (window = 'month', effective_from = '2026-09-01') AS\n";
    let select = |list: &str| format!("{head}SELECT {list} FROM usage u GROUP BY u.subject\n");
    let cases: Vec<(String, &str, &str)> = vec![
        (select("u.subject AS customer_id, 'x' AS item, sum(u.quantiti) AS amount, 'EUR' AS currency"), "r.sql:2:51", "quantiti"),
        (select("u.subject AS customer_id, 'x' AS item, grduated(1) AS amount, 'EUR' AS currency"), "r.sql:2:", "grduated"),
        (select("u.subject AS customer_id, 'x' AS item, 'EUR' AS currency"), "r.sql:2:", "no column `amount`"),
        (
            select("u.subject AS customer_id, 'x' AS item, CAST(sum(u.quantity) AS DOUBLE) AS amount, 'EUR' AS currency"),
            "r.sql:2:",
            "floating-point",
        ),
        (
            select("u.subject AS customer_id, 'x' AS item, CAST('1.5' AS DECIMAL(38,18)) AS amount, 'EUR' AS currency"),
            "r.sql:2:",
            "drops digits",
        ),
        (select("u.subject AS customer_id, 'x' AS item, random() AS amount, 'EUR' AS currency"), "r.sql:2:", "random"),
        (select("u.subject AS customer_id, 'x' AS item, avg(u.quantity) AS amount, 'EUR' AS currency"), "r.sql:2:", "avg"),
        (head.replace("month", "fortnight") + "SELECT 1\n", "r.sql:1:", "is not a window"),
        (head.replace("window =", "windw =") + "SELECT 1\n", "r.sql:1:", "did you mean `window`?"),
        (format!("{head}SELEC 1\n"), "r.sql:2:1", "SELEC"),
        (
            format!(
                "{head}SELECT c.customer_id, 'x' AS item, 1 AS amount, c.currency FROM usage u JOIN contracts c ON c.subject = u.subject\n"
            ),
            "r.sql:2:",
            "the join says no time",
        ),
        (
            format!("{head}SELECT 'a' AS customer_id, 'x' AS item, 1 AS amount, 'EUR' AS currency FROM generate_series(1, 10) g\n"),
            "r.sql:2:",
            "table functions",
        ),
        ("DROP TABLE usage\n".to_owned(), "r.sql:1:", "not a rule"),
        (format!("{head}SELECT 'a' AS customer_id, 'x' AS item, 1 AS amount, 'EUR' AS currency FROM secrets\n"), "r.sql:2:", "secrets"),
    ];
    for (rule, place, expected) in cases {
        let project = Project::new("");
        project.write("rules/r.sql", &rule);
        let output = ratemill(&["check", project.text()], &[]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "{rule}: {stdout}{}", String::from_utf8_lossy(&output.stderr));
        assert!(
            stdout.contains(place) && stdout.contains(expected) && stdout.contains('^'),
            "{rule}: {place} and {expected} are not in\n{stdout}"
        );
        let json: Value = serde_json::from_slice(&ratemill(&["check", project.text(), "--format", "json"], &[]).stdout).unwrap();
        assert!(
            json.as_array()
                .unwrap()
                .iter()
                .any(|found| found["file"].as_str().unwrap().ends_with("rules/r.sql") && found["line"].is_number()),
            "{rule}: {json}"
        );
    }
    for (csv, expected) in [
        ("plan,up_to,unit_price,flat_fee\nhome,100,0.3.0,5\n", "`0.3.0` is not a decimal number"),
        ("plan,up_to,unit_price,flat_fee\nhome,100,,5\n", "is empty"),
        ("plan,up_to,unit_price,flat_fee\nhome,100,1,5\nhome,100,2,5\n", "end at the same up_to"),
        ("plan,up_to,unit_price\nhome,100,1\n", "no column `flat_fee`"),
    ] {
        let project = Project::new("");
        project.write("reference/prices.csv", csv);
        let output = ratemill(&["check", project.text()], &[]);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "{csv}");
        assert!(stdout.contains("reference/prices.csv:") && stdout.contains(expected), "{stdout}");
    }
    let project = Project::new("");
    project.write(
        "reference/contracts.csv",
        "subject,customer_id,plan,currency,valid_from,valid_to\nm1,a,home,EUR,2026-01-01,2026-06-02\nm1,b,home,EUR,2026-06-01,\n",
    );
    let output = ratemill(&["check", project.text()], &[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("two rows that are valid at once from 2026-06-01"));
}

#[test]
fn a_usage_row_that_would_be_charged_twice_stops_the_rule() {
    let project = Project::new("");
    project.write("reference/contracts.toml", "[columns]\nsubject = \"text\"\ncustomer_id = \"text\"\nplan = \"text\"\ncurrency = \"text\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n");
    project.write(
        "reference/contracts.csv",
        "subject,customer_id,plan,currency,valid_from,valid_to\nm1,a,home,EUR,2026-01-01,\nm1,b,home,EUR,2026-01-01,\n",
    );
    let usage = project.write("usage.ndjson", &crate::project::lines(&[kwh("a", "m1", "2026-09-02T00:00:00Z", "1")]));
    let output = ratemill(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("matches several rows of `contracts`"), "{stderr}");
    assert_eq!(sql(project.path(), "SELECT count(*) FROM charges"), ["0"]);
}

#[test]
fn what_was_mended_can_be_replayed() {
    let project = Project::new("[http]\nlisten = \"127.0.0.1:0\"\n[dimensions]\nfloor = \"integer\"\n");
    let engine = Engine::start(project.path());
    let mut event = kwh("late-bloomer", "m1", "2026-09-01T10:00:00Z", "4");
    event["data"]["floor"] = json!("third");
    let mut hopeless = kwh("hopeless", "m1", "2026-09-01T10:00:00Z", "4");
    hopeless["data"]["quantity"] = json!("some");
    let answer = engine.send(&[event.clone(), hopeless]);
    assert_eq!(answer["rejected"].as_array().unwrap().len(), 2);
    // Sent again, it is rejected again, but kept once.
    engine.send(std::slice::from_ref(&event));
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*) FROM rejected"), ["2"]);
    assert!(ok(&["rejected", "list", "-C", project.text()]).contains("dimension_invalid"));
    // The mistake was in the project: floors have names.
    let toml =
        std::fs::read_to_string(project.path().join("ratemill.toml")).unwrap().replace("floor = \"integer\"", "floor_name = \"text\"");
    project.write("ratemill.toml", &toml);
    let shown = ok(&["rejected", "replay", "-C", project.text()]);
    assert_eq!(shown.trim(), "1 accepted, 0 had been accepted before, 1 are still rejected");
    let shown = ok(&["rejected", "replay", "-C", project.text()]);
    assert_eq!(shown.trim(), "0 accepted, 1 had been accepted before, 1 are still rejected");
    assert_eq!(sql(project.path(), "SELECT id, quantity FROM usage"), ["late-bloomer,4"]);
}

//! `ratemill rate`: files in, charges out, and nothing more when it is run again.

use crate::engine::{ok, ratemill, sql};
use crate::project::{Project, kwh, lines, september};

/// The net charges of a project, by identity.
pub fn net(project: &Project) -> Vec<String> {
    sql(
        project.path(),
        "SELECT customer_id, item, billing_period, currency, sum(quantity) AS quantity, sum(amount) AS amount FROM charges \
         GROUP BY customer_id, item, billing_period, currency HAVING sum(amount) <> 0 ORDER BY 1, 2, 3",
    )
}

#[test]
fn amounts_by_hand_and_idempotent() {
    let project = Project::new("");
    // 100 at 0.30 and the flat fee of 5, then 20.5 at 0.25: 30 + 5 + 5.125.
    let usage = project
        .write("usage.ndjson", &lines(&[kwh("a", "m1", "2026-09-02T00:00:00Z", "99.5"), kwh("b", "m1", "2026-09-30T23:59:59Z", "21")]));
    for _ in 0..2 {
        ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"]);
        assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,120.5,40.125"]);
    }
    assert_eq!(sql(project.path(), "SELECT count(*), max(revision) FROM charges"), ["1,1"]);
    // Half up to the cent; the ledger keeps the rest.
    assert_eq!(sql(project.path(), "SELECT billed, amount FROM invoice_lines"), ["40.13,40.125"]);
}

#[test]
fn splitting_repeating_and_reordering_change_nothing() {
    let events = september(500);
    let whole = Project::new("");
    let usage = whole.write("usage.ndjson", &lines(&events));
    ok(&["rate", "-C", whole.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    let parts = Project::new("");
    let mut reversed = events.clone();
    reversed.reverse();
    for (number, part) in reversed.chunks(170).enumerate() {
        let mut repeated = part.to_vec();
        repeated.extend_from_slice(&part[..20]);
        let file = parts.write(&format!("part-{number}.ndjson"), &lines(&repeated));
        ok(&["rate", "-C", parts.text(), "--usage", file.to_str().unwrap()]);
    }
    ok(&["rate", "-C", parts.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    assert_eq!(net(&parts), net(&whole));
    assert_eq!(sql(parts.path(), "SELECT count(*) FROM usage"), ["500"]);
}

#[test]
fn csv_and_parquet_give_what_ndjson_gives() {
    let events = september(200);
    let ndjson = Project::new("");
    let usage = ndjson.write("usage.ndjson", &lines(&events));
    ok(&["rate", "-C", ndjson.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    let text = |event: &serde_json::Value, name: &str| event[name].as_str().unwrap().to_owned();
    let mut csv = String::from("source,id,meter,subject,time,quantity\n");
    for event in &events {
        csv.push_str(&format!(
            "test,{},kwh,{},{},{}\n",
            text(event, "id"),
            text(event, "subject"),
            text(event, "time"),
            event["data"]["quantity"].as_str().unwrap()
        ));
    }
    let from_csv = Project::new("");
    let gz = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, csv.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let file = from_csv.write_bytes("usage.csv.gz", &gz);
    ok(&["rate", "-C", from_csv.text(), "--usage", file.to_str().unwrap(), "--close"]);
    assert_eq!(net(&from_csv), net(&ndjson));
    let from_parquet = Project::new("");
    let file = from_parquet.path().join("usage.parquet");
    let csv_file = from_parquet.write("usage.csv", &csv);
    let program = "import duckdb,sys; duckdb.sql(f\"COPY (SELECT source, id, meter, subject, time::TIMESTAMPTZ AS time, quantity::DECIMAL(18,3) AS quantity FROM read_csv('{sys.argv[1]}', all_varchar=true)) TO '{sys.argv[2]}' (FORMAT parquet)\")";
    crate::servers::python(program, &[csv_file.to_str().unwrap(), file.to_str().unwrap()], &[]);
    ok(&["rate", "-C", from_parquet.text(), "--usage", file.to_str().unwrap(), "--close"]);
    assert_eq!(net(&from_parquet), net(&ndjson));
}

#[test]
fn a_rule_that_fails_names_rule_window_and_subject_and_stops_no_other() {
    let project = Project::new("");
    project.write(
        "rules/risky.sql",
        "CREATE MATERIALIZED VIEW risky WITH (window = 'month', effective_from = '2026-09-01') AS
SELECT u.subject AS customer_id, 'Risk' AS item, 1 / (sum(u.quantity) - 3) AS amount, 'EUR' AS currency FROM usage u GROUP BY u.subject
",
    );
    let usage =
        project.write("usage.ndjson", &lines(&[kwh("a", "m1", "2026-09-02T00:00:00Z", "1"), kwh("b", "m2", "2026-09-02T00:00:00Z", "3")]));
    let output = ratemill(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("rule `risky`") && stderr.contains("subject `m2`") && stderr.contains("division by zero"), "{stderr}");
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,1,5.3", "cust-2,Energy,2026-09,EUR,3,5.9"]);
}

#[test]
fn a_lake_that_is_held_is_refused() {
    let project = Project::with_http();
    let engine = crate::engine::Engine::start(project.path());
    let usage = project.write("usage.ndjson", &lines(&september(1)));
    let output = ratemill(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    // Another log on the same lake.
    let other = Project::new(&format!("[lake]\nurl = \"{}/lake\"\n", project.text()));
    let output = ratemill(&["rate", "-C", other.text(), "--usage", usage.to_str().unwrap()], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("is held by process"), "{stderr}");
    engine.stop();
    // Released and drained: now it may.
    ok(&["rate", "-C", other.text(), "--usage", usage.to_str().unwrap()]);
}

//! `running_charges` in the lake: what the engine answers, without windows that are published.

use std::path::Path;

use serde_json::Value;

use crate::engine::{Engine, ok, sql, wait};
use crate::project::{PERIOD_RULE, Project, RULE, kwh, lines, september};
use crate::running::running;
use crate::servers::python;
use crate::upkeep::first_epoch;

const ROWS: &str = "SELECT rule, window_start, customer_id, item, amount, quantity, currency FROM running_charges ORDER BY 1, 2, 3, 4";

/// The rows of the table, and of the answer over HTTP.
fn both(project: &Project, engine: &Engine) -> (Vec<String>, Vec<String>) {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let columns = ["rule", "window_start", "customer_id", "item", "amount", "quantity", "currency"];
    let mut answered: Vec<String> = running(engine, "").iter().map(|row| columns.map(|name| text(row, name)).join(",")).collect();
    answered.sort();
    let mut stored = sql(project.path(), ROWS);
    stored.sort();
    (stored, answered)
}

fn settled(project: &Project, engine: &Engine) -> Vec<String> {
    wait("the table has what is answered", || {
        let (stored, answered) = both(project, engine);
        stored == answered
    });
    both(project, engine).0
}

fn vat(project: &Project) {
    project.write(
        "rules/vat.sql",
        "CREATE MATERIALIZED VIEW vat WITH (window = 'month', grace = '3650 days', effective_from = '2026-09-01') AS
         SELECT e.customer_id, 'VAT' AS item, sum(e.amount) * 0.2 AS amount, e.currency FROM energy e GROUP BY e.customer_id, e.currency",
    );
}

fn polars(folder: &Path) -> String {
    let script = "import sys, polars, duckdb, deltalake
path = sys.argv[1] + '/lake/running_charges'
frame = polars.read_delta(path)
files = deltalake.DeltaTable(path).file_uris()
rows = duckdb.execute('SELECT count(*), sum(amount) FROM read_parquet(?)', [files]).fetchone() if files else (0, None)
print(frame.height, rows[0], frame['amount'].sum() == rows[1])";
    python(script, &[folder.to_str().unwrap()], &[]).trim().to_owned()
}

#[test]
fn the_table_has_what_the_engine_answers() {
    for fold in [true, false] {
        let project = Project::new(&format!(
            "[epoch]\ninterval = \"100 milliseconds\"\nrunning = \"100 milliseconds\"\nfold = {fold}\n[http]\nlisten = \"127.0.0.1:0\"\n"
        ));
        project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
        vat(&project);
        let engine = Engine::start(project.path());
        engine.send(&september(100));
        first_epoch(&project);
        let first = settled(&project, &engine);
        assert_eq!(first.len(), 20, "{first:?}");
        // One customer more usage, and one less.
        engine.send(&[kwh("more", "m1", "2026-09-20T10:00:00Z", "10")]);
        engine.send(&[serde_json::json!({"specversion": "1.0", "source": "office", "id": "void", "type": "ratemill.void",
                                         "data": {"target": {"source": "test", "id": "e12"}}})]);
        wait("both are stored", || sql(project.path(), "SELECT count(*) FROM usage, changes") == ["101"]);
        let second = settled(&project, &engine);
        // Energy and tax of both; the others are as they were.
        assert_eq!(second.iter().filter(|row| !first.contains(row)).count(), 4, "{first:?} {second:?}");
        assert_eq!(polars(project.path()), "20 20 True");
        engine.kill();
        // Nothing is lost or old after a restart.
        let engine = Engine::start(project.path());
        engine.send(&[kwh("again", "m2", "2026-09-20T10:00:00Z", "10")]);
        wait("it is stored", || sql(project.path(), "SELECT count(*) FROM usage") == ["102"]);
        let third = settled(&project, &engine);
        assert_eq!(third.iter().filter(|row| !second.contains(row)).count(), 2, "{second:?} {third:?}");
        // Other prices change every row, without any usage.
        project.write("reference/prices.csv", "plan,up_to,unit_price,flat_fee\nhome,,0.50,0\n");
        ok(&["reload", "-C", project.text()]);
        wait("new prices are in the table", || sql(project.path(), ROWS).iter().all(|row| !third.contains(row)));
        assert_eq!(settled(&project, &engine).len(), 20);
        engine.stop();
        // A month that is published has no running charges.
        let nothing = project.write("nothing.ndjson", "");
        ok(&["rate", "-C", project.text(), "--usage", nothing.to_str().unwrap(), "--to", "2026-10-01"]);
        assert_eq!(sql(project.path(), "SELECT count(*) FROM charges"), ["20"]);
        assert_eq!(sql(project.path(), "SELECT count(*) FROM running_charges"), ["0"]);
        assert_eq!(polars(project.path()), "0 0 False");
    }
}

#[test]
fn a_window_is_in_the_ledger_or_in_the_table() {
    let project = Project::new(
        "[epoch]\ninterval = \"50 milliseconds\"\nrunning = \"10 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n[upkeep]\ninterval = \"30 milliseconds\"\ncheckpoint = 5\n",
    );
    project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
    // Days are published as soon as there is usage of a day three days later.
    project.write("rules/daily.sql", &RULE.replace("1 day", "3 days").replace("'month'", "'day'").replace("VIEW energy", "VIEW daily"));
    let engine = Engine::start(project.path());
    let mut events = september(400);
    events.sort_by_key(|event| event["time"].as_str().unwrap().to_owned());
    for part in events.chunks(25) {
        engine.send(part);
        first_epoch(&project);
        let twice = "SELECT count(*) FROM running_charges r JOIN charges c ON c.rule = r.rule AND c.window_start = r.window_start";
        assert_eq!(sql(project.path(), twice), ["0"]);
    }
    settled(&project, &engine);
    // Each version of the table that a commit made is whole: energy of ten customers, or nothing yet.
    engine.stop();
    assert_eq!(sql(project.path(), "SELECT count(*) FROM running_charges WHERE rule = 'energy'"), ["10"]);
}

#[test]
fn a_rule_that_fails_stops_no_epoch_and_only_its_own_rows_are_missing() {
    let project =
        Project::new("[epoch]\ninterval = \"50 milliseconds\"\nrunning = \"10 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
    project.write(
        "rules/broken.sql",
        "CREATE MATERIALIZED VIEW broken WITH (window = 'month', grace = '3650 days', effective_from = '2026-09-01') AS
         SELECT c.customer_id, 'Inverse' AS item, 1 / (sum(u.quantity) - 7) AS amount, c.currency
         FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject GROUP BY c.customer_id, c.currency",
    );
    let engine = Engine::start(project.path());
    let count = |rule: &str| sql(project.path(), &format!("SELECT count(*) FROM running_charges WHERE rule = '{rule}'")).remove(0);
    engine.send(&[kwh("a", "m1", "2026-09-03T10:00:00Z", "6")]);
    first_epoch(&project);
    wait("both rules are published", || count("energy") == "1" && count("broken") == "1");
    engine.send(&[kwh("b", "m1", "2026-09-03T11:00:00Z", "1")]);
    wait("the broken one is gone", || count("broken") == "0");
    assert_eq!(sql(project.path(), "SELECT quantity FROM running_charges"), ["7"]);
    engine.send(&[kwh("c", "m1", "2026-09-03T12:00:00Z", "2")]);
    wait("it is back", || count("broken") == "1");
    assert_eq!(sql(project.path(), "SELECT quantity FROM running_charges WHERE rule = 'energy'"), ["9"]);
    engine.stop();
}

#[test]
fn billing_periods_leave_the_table_contract_by_contract() {
    let project =
        Project::new("[epoch]\ninterval = \"50 milliseconds\"\nrunning = \"10 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.contracts("m1,cust-1,k1,home,EUR,1,2026-01-01,\nm2,cust-2,k2,home,EUR,1,2026-01-01,\nm3,cust-3,k3,home,EUR,15,2026-01-01,\n");
    project.write("rules/energy.sql", &PERIOD_RULE.replace("effective_from", "grace = '3650 days', effective_from"));
    let engine = Engine::start(project.path());
    engine.send(&["m1", "m2", "m3"].map(|subject| kwh(subject, subject, "2026-06-20T10:00:00Z", "10")));
    first_epoch(&project);
    wait("three periods run", || sql(project.path(), "SELECT count(*) FROM running_charges") == ["3"]);
    engine.stop();
    let nothing = project.write("nothing.ndjson", &lines(&[]));
    ok(&["rate", "-C", project.text(), "--usage", nothing.to_str().unwrap(), "--to", "2026-07-01"]);
    assert_eq!(sql(project.path(), "SELECT contract_id FROM charges ORDER BY 1"), ["k1", "k2"]);
    assert_eq!(sql(project.path(), "SELECT contract_id, amount FROM running_charges"), ["k3,10"]);
}

#[test]
fn a_rule_that_shows_nothing_any_more_leaves_the_table() {
    let project =
        Project::new("[epoch]\ninterval = \"50 milliseconds\"\nrunning = \"10 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    let energy = RULE.replace("1 day", "3650 days");
    project.write("rules/energy.sql", &energy);
    vat(&project);
    let engine = Engine::start(project.path());
    engine.send(&[kwh("a", "m1", "2026-09-03T10:00:00Z", "6")]);
    first_epoch(&project);
    let rules = || sql(project.path(), "SELECT rule FROM running_charges ORDER BY 1");
    wait("both are published", || rules() == ["energy", "vat"]);
    project.write("rules/energy.sql", &energy.replace("effective_from", "emit = 'final', effective_from"));
    ok(&["reload", "-C", project.text()]);
    wait("only its reader is shown", || rules() == ["vat"]);
    engine.stop();
    // A rule is taken out while the engine is away.
    std::fs::remove_file(project.path().join("rules/vat.sql")).unwrap();
    let engine = Engine::start(project.path());
    wait("nothing is shown", || rules().is_empty());
    engine.stop();
}

#[test]
fn a_void_changes_what_later_windows_open_with() {
    let project =
        Project::new("[epoch]\ninterval = \"50 milliseconds\"\nrunning = \"10 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.write(
        "rules/energy.sql",
        "CREATE MATERIALIZED VIEW energy WITH (window = 'month', grace = '3650 days', effective_from = '2026-07-01', carry = 'subject, meter', fan_out = 'allowed') AS
         WITH levels AS (
             SELECT o.subject, o.quantity FROM opening o WHERE o.meter = 'kwh'
             UNION ALL
             SELECT u.subject, u.quantity FROM usage u WHERE u.meter = 'kwh'
         )
         SELECT l.subject AS customer_id, 'Level' AS item, sum(l.quantity) AS amount, 'EUR' AS currency FROM levels l GROUP BY l.subject",
    );
    let engine = Engine::start(project.path());
    engine.send(&[
        kwh("a", "m1", "2026-06-05T10:00:00Z", "1"),
        kwh("b", "m1", "2026-06-20T10:00:00Z", "10"),
        kwh("c", "m1", "2026-07-05T10:00:00Z", "100"),
        kwh("d", "m1", "2026-07-20T10:00:00Z", "1000"),
        kwh("e", "m1", "2026-08-05T10:00:00Z", "10000"),
    ]);
    first_epoch(&project);
    let amounts = || sql(project.path(), "SELECT amount FROM running_charges ORDER BY window_start");
    wait("both months are published", || amounts() == ["1110", "11000"]);
    // The last event before August lies in July, and the last before July in no window.
    for (target, expected) in [("d", ["110", "10100"]), ("b", ["101", "10100"])] {
        engine
            .send(&[serde_json::json!({"specversion": "1.0", "source": "office", "id": format!("void {target}"), "type": "ratemill.void",
                                         "data": {"target": {"source": "test", "id": target}}})]);
        wait("the void is published", || amounts() == expected);
    }
    settled(&project, &engine);
    engine.stop();
}

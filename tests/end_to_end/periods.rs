//! Closing of invoicing months: in order, only what is published, and for good.

use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};

use crate::batch::net;
use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::project::{Project, RULE, kwh, lines};

/// The same electricity from June on.
pub fn from_june(toml: &str) -> Project {
    let project = Project::new(toml);
    project.write("rules/energy.sql", &RULE.replace("2026-09-01", "2026-06-01"));
    project
}

pub fn rate(project: &Project, name: &str, events: &[Value], more: &[&str]) {
    let usage = project.write(name, &lines(events));
    ok(&[&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap()], more].concat());
}

fn close(project: &Project, month: &str, more: &[&str]) -> Output {
    ratemill(&[&["period", "close", month, "-C", project.text()], more].concat(), &[])
}

/// The exit code and what was said.
fn refused(project: &Project, month: &str, more: &[&str]) -> (i32, String) {
    let output = close(project, month, more);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn closed(project: &Project, month: &str) {
    let (code, stderr) = refused(project, month, &[]);
    assert_eq!(code, 0, "{stderr}");
}

fn periods(project: &Project) -> Vec<String> {
    let text = ok(&["period", "list", "-C", project.text(), "--format", "json"]);
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let shown = |row: &Value, name: &str| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned);
    rows.iter().map(|row| ["period", "state", "lines", "billed"].map(|name| shown(row, name)).join(" ")).collect()
}

const INVOICED: &str = "SELECT billing_period, posting_period, amount, billed FROM invoice_lines ORDER BY 1, 2";

#[test]
fn late_usage_of_a_closed_month_is_posted_to_the_next_and_sums_stay_right() {
    let project = from_june("[http]\nlisten = \"127.0.0.1:0\"\n");
    // 5 + 10.015 × 0.30 = 8.0045
    rate(&project, "june.ndjson", &[kwh("a", "m1", "2026-06-02T00:00:00Z", "10.015")], &["--to", "2026-07-01"]);
    assert_eq!(periods(&project), ["2026-06 open 1 8"]);
    let shown: Value = serde_json::from_slice(&close(&project, "2026-06", &["--format", "json"]).stdout).unwrap();
    assert_eq!((&shown[0]["state"], &shown[0]["billed"]), (&json!("closed"), &json!("8")));
    assert_eq!(sql(project.path(), "SELECT period, closed_at IS NULL FROM closed_periods"), ["2026-06,false"]);

    let engine = Engine::start(project.path());
    engine.send(&[kwh("b", "m1", "2026-06-03T00:00:00Z", "0.01"), kwh("c", "m2", "2026-06-03T00:00:00Z", "1")]);
    wait("the corrections are posted", || sql(project.path(), "SELECT count(*) FROM charges") == ["4"]);
    engine.stop();
    // What was charged is taken back in July by a row that names it; what comes new to June is a correction, too.
    let rows = sql(
        project.path(),
        "SELECT c.customer_id, c.class, c.billing_period, c.posting_period, c.amount, r.posting_period, r.class, c.amount + r.amount \
         FROM charges c LEFT JOIN charges r ON r.charge_id = c.reverses ORDER BY c.customer_id, c.revision",
    );
    assert_eq!(
        rows,
        [
            "cust-1,original,2026-06,2026-06,8.0045,,,",
            "cust-1,correction,2026-06,2026-07,-8.0045,2026-06,original,0",
            "cust-1,correction,2026-06,2026-07,8.0075,,,",
            "cust-2,correction,2026-06,2026-07,5.3,,,",
        ]
    );
    // 8.0075 is 8.01: July bills the cent that June was short of.
    assert_eq!(sql(project.path(), INVOICED), ["2026-06,2026-06,8.0045,8", "2026-06,2026-07,0.003,0.01", "2026-06,2026-07,5.3,5.3"]);
    // Every day of another month is still billed in its own, and July closes after it is published.
    let (code, stderr) = refused(&project, "2026-07", &[]);
    assert_eq!(code, 0, "the engine has published July, which had no usage: {stderr}");
    rate(&project, "later.ndjson", &[kwh("d", "m1", "2026-06-04T00:00:00Z", "0.01")], &[]);
    assert_eq!(
        sql(project.path(), &INVOICED.replace("invoice_lines", "invoice_lines WHERE customer_id = 'cust-1'")),
        ["2026-06,2026-06,8.0045,8", "2026-06,2026-07,0.003,0.01", "2026-06,2026-08,0.003,0"]
    );
    assert_eq!(sql(project.path(), "SELECT sum(billed) FROM invoice_totals WHERE customer_id = 'cust-1'"), ["8.01"]);
    ok(&["audit", "-C", project.text()]);

    let fresh = from_june("");
    let all = ["a 2 m1 10.015", "b 3 m1 0.01", "c 3 m2 1", "d 4 m1 0.01"].map(|event| {
        let parts: Vec<&str> = event.split(' ').collect();
        kwh(parts[0], parts[2], &format!("2026-06-0{}T00:00:00Z", parts[1]), parts[3])
    });
    rate(&fresh, "all.ndjson", &all, &["--close"]);
    assert_eq!(net(&project), net(&fresh));
}

#[test]
fn months_are_closed_in_order_and_only_when_they_are_published() {
    let project = from_june("");
    let usage = [kwh("a", "m1", "2026-06-02T00:00:00Z", "1"), kwh("b", "m1", "2026-07-02T00:00:00Z", "1")];
    rate(&project, "usage.ndjson", &usage, &["--to", "2026-07-01"]);
    let (code, stderr) = refused(&project, "2026-07", &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("2026-06 is still open") && stderr.contains("ratemill period close 2026-06"), "{stderr}");
    closed(&project, "2026-06");
    let (code, stderr) = refused(&project, "2026-06", &[]);
    assert!(code == 0 && stderr.contains("closed already"), "{stderr}");
    // All usage of July came after it was over: it has its grace from then on, unless somebody publishes it.
    let (code, stderr) = refused(&project, "2026-07", &[]);
    let named = "1 window is not published: rule `energy`, window 2026-07-01T00:00:00Z to 2026-08-01T00:00:00Z is due at ";
    assert!(code == 1 && stderr.contains(named), "{stderr}");
    rate(&project, "nothing.ndjson", &[], &["--to", "2026-08-01"]);
    closed(&project, "2026-07");
    let (code, stderr) = refused(&project, "2026-09", &[]);
    assert!(code == 1 && stderr.contains("2026-08 is still open"), "{stderr}");
    // August has no usage and might have charges all the same: it is due, and nobody has published it.
    let (code, stderr) = refused(&project, "2026-08", &["--early"]);
    assert!(code == 1 && stderr.contains("2026-09-01T00:00:00Z is due; start `ratemill run`"), "{stderr}");
    assert_eq!(periods(&project), ["2026-06 closed 1 5.3", "2026-07 closed 1 5.3"]);
    for wrong in ["2026-13", "june", "2026-6"] {
        let (code, stderr) = refused(&project, wrong, &[]);
        assert!(code == 2 && stderr.contains("write it like 2026-06"), "{stderr}");
    }
    let (code, stderr) = refused(&project, "2999-01", &[]);
    assert!(code == 1 && stderr.contains("is not over before 2999-02-01T00:00:00Z"), "{stderr}");
}

#[test]
fn the_first_month_that_is_closed_waits_for_earlier_ones_only_where_they_have_usage() {
    let project = from_june("");
    rate(&project, "usage.ndjson", &[kwh("a", "m1", "2026-08-02T00:00:00Z", "1")], &["--from", "2026-08-01", "--to", "2026-09-01"]);
    rate(&project, "early.ndjson", &[kwh("b", "m1", "2026-06-02T00:00:00Z", "1")], &["--from", "2026-08-01", "--to", "2026-09-01"]);
    let (code, stderr) = refused(&project, "2026-08", &[]);
    assert!(code == 1 && stderr.contains("1 window is not published: rule `energy`, window 2026-06-01"), "{stderr}");
    rate(&project, "nothing.ndjson", &[], &["--to", "2026-07-01"]);
    let (code, stderr) = refused(&project, "2026-08", &[]);
    assert!(code == 1 && stderr.contains("2026-06 is still open"), "{stderr}");

    let project = from_june("");
    rate(&project, "usage.ndjson", &[kwh("a", "m1", "2026-08-02T00:00:00Z", "1")], &["--from", "2026-08-01", "--to", "2026-09-01"]);
    closed(&project, "2026-08");
    // June and July were left out; whoever rates them later posts them to the open month.
    rate(&project, "late.ndjson", &[kwh("b", "m1", "2026-06-02T00:00:00Z", "1")], &["--to", "2026-07-01"]);
    assert_eq!(sql(project.path(), INVOICED), ["2026-06,2026-09,5.3,5.3", "2026-08,2026-08,5.3,5.3"]);
}

#[test]
fn windows_that_wait_for_their_grace_hold_a_month_unless_it_is_closed_early() {
    let project = from_june("");
    project.write("rules/energy.sql", &RULE.replace("2026-09-01", "2026-06-01").replace("1 day", "9000 days"));
    rate(&project, "usage.ndjson", &[kwh("a", "m1", "2026-06-02T00:00:00Z", "1")], &[]);
    let (code, stderr) = refused(&project, "2026-06", &[]);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("is due at 2051-02-") && stderr.contains("--early"), "{stderr}");
    let (code, stderr) = refused(&project, "2026-06", &["--early"]);
    assert!(code == 0 && stderr.contains("posted to 2026-07"), "{stderr}");
    rate(&project, "nothing.ndjson", &[], &["--close"]);
    assert_eq!(sql(project.path(), "SELECT class, billing_period, posting_period FROM charges"), ["original,2026-06,2026-07"]);
}

#[test]
fn usage_that_only_the_log_has_is_stored_first_and_late_usage_is_never_closed_over() {
    let project = from_june("[http]\nlisten = \"127.0.0.1:0\"\n[epoch]\ninterval = \"1 hour\"\n");
    rate(&project, "june.ndjson", &[kwh("a", "m1", "2026-06-02T00:00:00Z", "1")], &["--to", "2026-07-01"]);
    let engine = Engine::start(project.path());
    let (code, stderr) = refused(&project, "2026-06", &[]);
    assert!(code == 5 && stderr.contains("in use by another process") && stderr.contains("stop the engine"), "{stderr}");
    engine.send(&[kwh("b", "m1", "2026-06-03T00:00:00Z", "1")]);
    engine.kill();
    let (code, stderr) = refused(&project, "2026-06", &[]);
    assert!(code == 1 && stderr.contains("its late usage is not rated yet"), "{stderr}");
    assert_eq!(sql(project.path(), "SELECT count(*) FROM usage"), ["2"]);
    let audited = ratemill(&["audit", "-C", project.text()], &[]);
    assert!(audited.status.success() && String::from_utf8(audited.stderr).unwrap().contains("1 windows have late usage"));
    rate(&project, "nothing.ndjson", &[], &["--to", "2026-07-01"]);
    closed(&project, "2026-06");
    assert_eq!(sql(project.path(), INVOICED), ["2026-06,2026-06,5.6,5.6"]);
}

#[test]
fn a_closing_that_was_interrupted_is_repeated() {
    let project = from_june("");
    rate(&project, "june.ndjson", &[kwh("a", "m1", "2026-06-02T00:00:00Z", "1")], &["--to", "2026-07-01"]);
    closed(&project, "2026-06");
    let at = sql(project.path(), "SELECT closed_at FROM closed_periods");
    // As after a crash between the manifest and the completion record.
    let mut records: Vec<PathBuf> =
        std::fs::read_dir(project.path().join("lake/epochs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    records.sort();
    let last = records.iter().rev().find(|path| path.to_string_lossy().ends_with(".done.json")).unwrap();
    std::fs::remove_file(last).unwrap();
    assert_eq!(periods(&project), ["2026-06 open 1 5.3"]);
    rate(&project, "late.ndjson", &[kwh("b", "m1", "2026-06-03T00:00:00Z", "1")], &[]);
    assert_eq!(sql(project.path(), "SELECT closed_at FROM closed_periods"), at);
    assert_eq!(sql(project.path(), INVOICED), ["2026-06,2026-06,5.3,5.3", "2026-06,2026-07,0.3,0.3"]);
}

//! Late usage in a published window: reversal and replacement, and the net is what a fresh rating gives.

use crate::batch::net;
use crate::engine::{Engine, ok, sql, wait};
use crate::project::{Project, kwh, lines, september};

#[test]
fn late_usage_corrects_and_the_net_equals_a_fresh_rating() {
    let project = Project::with_http();
    let engine = Engine::start(project.path());
    let events = september(300);
    engine.send(&events);
    // An event of October moves the watermark past September and its grace.
    let october = kwh("october", "m0", "2026-10-05T00:00:00Z", "1");
    engine.send(std::slice::from_ref(&october));
    wait("September is published", || !sql_or_empty(&project, "SELECT 1 FROM charges LIMIT 1").is_empty());
    assert_eq!(sql(project.path(), "SELECT DISTINCT class, cause FROM charges"), ["original,window closed"]);
    let late = [kwh("late-1", "m3", "2026-09-15T00:00:00Z", "7.5"), kwh("late-2", "m4", "2026-09-01T00:00:00Z", "0")];
    engine.send(&late);
    wait("the correction is posted", || sql(project.path(), "SELECT count(*) FROM charges WHERE class = 'correction'") == ["2"]);
    // The first of two: what was charged is taken back by a row that names it.
    let rows = sql(
        project.path(),
        "SELECT c.revision, c.cause, r.charge_id IS NOT NULL, c.amount + coalesce(r.amount, 0) = 0 FROM charges c LEFT JOIN charges r ON r.charge_id = c.reverses WHERE c.class = 'correction' ORDER BY c.revision",
    );
    assert_eq!(rows[0], "2,late usage,true,true");
    assert!(rows[1].starts_with("3,late usage,false"), "{rows:?}");
    engine.stop();

    let fresh = Project::new("");
    let all: Vec<_> = events.iter().chain(&late).cloned().collect();
    let usage = fresh.write("usage.ndjson", &lines(&all));
    ok(&["rate", "-C", fresh.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    assert_eq!(net(&project), net(&fresh));
    // Re-rating what is right already posts nothing.
    let before = sql(project.path(), "SELECT count(*) FROM charges");
    ok(&["rate", "-C", project.text(), "--re-rate", "--from", "2026-09-01", "--to", "2026-10-01"]);
    assert_eq!(sql(project.path(), "SELECT count(*) FROM charges"), before);
}

#[test]
fn a_changed_price_is_posted_only_when_it_is_asked_for() {
    let project = Project::new("");
    let usage = project.write("usage.ndjson", &lines(&[kwh("a", "m1", "2026-09-02T00:00:00Z", "10")]));
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,10,8"]);
    project.write("reference/prices.csv", "plan,up_to,unit_price,flat_fee\nhome,,0.50,0\n");
    // Late usage is rated with the price that the window was published with.
    let late = project.write("late.ndjson", &lines(&[kwh("b", "m1", "2026-09-03T00:00:00Z", "1")]));
    ok(&["rate", "-C", project.text(), "--usage", late.to_str().unwrap(), "--close"]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,11,8.3"]);
    ok(&["rate", "-C", project.text(), "--re-rate", "--from", "2026-09-01", "--to", "2026-10-01"]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,11,5.5"]);
    // Whatever corrections came: what was billed is the rounded sum.
    assert_eq!(sql(project.path(), "SELECT billed FROM invoice_lines"), ["5.5"]);
}

/// A query that may be asked before there is anything to read.
fn sql_or_empty(project: &Project, query: &str) -> Vec<String> {
    let output = crate::engine::ratemill(&["sql", "-C", project.text(), "-c", query, "--format", "csv"], &[]);
    String::from_utf8(output.stdout).unwrap().lines().skip(1).map(str::to_owned).collect()
}

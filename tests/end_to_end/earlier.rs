//! Rules that read their own earlier charges: each month follows the one before, whatever is folded, comes late or fails.

use serde_json::Value;

use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::project::{Project, kwh, lines};
use crate::upkeep::first_epoch;

/// The highest reading of a month, and at least four fifths of the highest that was measured in the two before.
const RATCHET: &str = "CREATE MATERIALIZED VIEW energy
WITH (window = 'month', grace = '1 day', effective_from = '2026-05-01', history = '2 windows', fan_out = 'allowed') AS
WITH peaks AS (
    SELECT c.customer_id, c.currency, max(u.quantity) AS kw FROM usage u
    JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject WHERE u.meter = 'kwh' GROUP BY c.customer_id, c.currency
),
ratchets AS (SELECT e.customer_id, max(e.measured_kw) * 0.8 AS kw FROM earlier.energy e GROUP BY e.customer_id)
SELECT p.customer_id, 'Demand' AS item, greatest(p.kw, coalesce(r.kw, 0)) AS amount, p.currency, p.kw AS measured_kw
FROM peaks p LEFT JOIN ratchets r ON r.customer_id = p.customer_id
";

/// What was used, and what is owed from the month before; a month of 37 cannot be rated.
const BALANCE: &str = "CREATE MATERIALIZED VIEW energy
WITH (window = 'month', grace = '1 day', effective_from = '2026-06-01', history = '1 window', fan_out = 'allowed') AS
WITH used AS (
    SELECT c.customer_id, c.currency, sum(u.quantity) AS kwh FROM usage u
    JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject WHERE u.meter = 'kwh' GROUP BY c.customer_id, c.currency
),
owed AS (SELECT e.customer_id, e.currency, sum(e.amount) AS amount FROM earlier.energy e GROUP BY e.customer_id, e.currency)
SELECT n.customer_id, 'Balance' AS item, CASE WHEN n.kwh = 37 THEN 1 / (n.kwh - 37) ELSE n.kwh END + coalesce(o.amount, 0) AS amount, n.currency
FROM used n LEFT JOIN owed o ON o.customer_id = n.customer_id AND o.currency = n.currency
";

fn owed(project: &Project) -> Vec<String> {
    sql(
        project.path(),
        "SELECT substr(CAST(window_start AS VARCHAR), 1, 7), customer_id, sum(amount) FROM charges GROUP BY 1, 2 HAVING sum(amount) <> 0 ORDER BY 1, 2",
    )
}

fn audit_is_clean(project: &Project) {
    let output = ratemill(&["audit", "-C", project.text()], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn of_month(id: &str, month: u32, quantity: &str) -> Value {
    kwh(id, "m1", &format!("2026-{month:02}-10T00:00:00Z"), quantity)
}

#[test]
fn a_month_that_is_closed_from_folded_state_reads_the_published_ones() {
    let project = Project::with_http();
    project.write("rules/energy.sql", RATCHET);
    let engine = Engine::start(project.path());
    let mut expected = Vec::new();
    // Readings of a month close the month before.
    for (month, [first, second], charged) in [
        (6, ["100", "10"], vec![]),
        (7, ["20", "50"], vec!["2026-06,cust-1,100", "2026-06,cust-2,10"]),
        (8, ["30", "20"], vec!["2026-07,cust-1,80", "2026-07,cust-2,50"]),
        (9, ["0", "0"], vec!["2026-08,cust-1,80", "2026-08,cust-2,40"]),
    ] {
        let mut other = of_month(&format!("b{month}"), month, second);
        other["subject"] = Value::from("m2");
        engine.send(&[of_month(&format!("a{month}"), month, first), other]);
        first_epoch(&project);
        expected.extend(charged);
        wait(&format!("the month before {month} is published"), || owed(&project).len() == expected.len());
        assert_eq!(owed(&project), expected);
    }
    let (_, metrics) = engine.get("/metrics");
    let folded = metrics.lines().find_map(|line| line.strip_prefix("ratemill_windows_folded_total "));
    assert!(folded.is_some_and(|count| count.parse::<u64>().unwrap() >= 3), "{folded:?}");
    engine.stop();
    audit_is_clean(&project);
}

#[test]
fn a_month_that_closes_together_with_late_usage_of_the_one_before_follows_it() {
    for fold in [true, false] {
        let project = Project::new(&format!("[epoch]\ninterval = \"100 milliseconds\"\nfold = {fold}\n[http]\nlisten = \"127.0.0.1:0\"\n"));
        project.write("rules/energy.sql", BALANCE);
        let engine = Engine::start(project.path());
        engine.send(&[of_month("june", 6, "10")]);
        engine.send(&[of_month("mark", 7, "0")]);
        first_epoch(&project);
        wait("June is published", || owed(&project) == ["2026-06,cust-1,10"]);
        engine.send(&[of_month("late", 6, "5"), of_month("july", 7, "20"), of_month("next", 8, "0")]);
        wait("July is published", || owed(&project).len() == 2);
        assert_eq!(owed(&project), ["2026-06,cust-1,15", "2026-07,cust-1,35"]);
        engine.stop();
        audit_is_clean(&project);
    }
}

/// June, July and August are published with 10, 20 and 30.
fn published(rules: &[(&str, String)]) -> Project {
    let project = Project::new("");
    rules.iter().for_each(|(name, text)| drop(project.write(name, text)));
    rate(&project, &[of_month("a", 6, "10"), of_month("b", 7, "20"), of_month("c", 8, "30")]);
    assert_eq!(owed(&project), ["2026-06,cust-1,10", "2026-07,cust-1,30", "2026-08,cust-1,60"]);
    project
}

/// Rates usage of published months; a month may fail.
fn rate(project: &Project, usage: &[Value]) {
    let file = project.write("usage.ndjson", &lines(usage));
    ratemill(&["rate", "-C", project.text(), "--usage", file.to_str().unwrap(), "--to", "2026-09-01"], &[]);
}

#[test]
fn a_month_that_fails_keeps_those_after_it_and_none_before() {
    let project = published(&[("rules/energy.sql", BALANCE.to_owned())]);
    rate(&project, &[of_month("late a", 6, "5"), of_month("late c", 8, "7")]);
    assert_eq!(owed(&project), ["2026-06,cust-1,15", "2026-07,cust-1,35", "2026-08,cust-1,60"]);
    rate(&project, &[of_month("mended", 8, "1")]);
    assert_eq!(owed(&project), ["2026-06,cust-1,15", "2026-07,cust-1,35", "2026-08,cust-1,73"]);
    // The first fails: all stay as they are, whatever came late for the others.
    rate(&project, &[of_month("late again a", 6, "22"), of_month("late b", 7, "100")]);
    assert_eq!(owed(&project), ["2026-06,cust-1,15", "2026-07,cust-1,35", "2026-08,cust-1,73"]);
    rate(&project, &[of_month("mended again", 6, "1")]);
    assert_eq!(owed(&project), ["2026-06,cust-1,38", "2026-07,cust-1,158", "2026-08,cust-1,196"]);
    audit_is_clean(&project);
}

#[test]
fn a_month_of_the_next_version_waits_for_one_that_fails() {
    let older = BALANCE.replace("effective_from = '2026-06-01'", "effective_from = '2026-06-01', effective_to = '2026-07-01'");
    let newer = BALANCE.replace("2026-06-01", "2026-07-01").replace("n.kwh = 37", "n.kwh = 1000");
    let project = published(&[("rules/energy.sql", older), ("rules/energy_2.sql", newer)]);
    rate(&project, &[of_month("late a", 6, "27"), of_month("late b", 7, "5")]);
    assert_eq!(owed(&project), ["2026-06,cust-1,10", "2026-07,cust-1,30", "2026-08,cust-1,60"]);
    rate(&project, &[of_month("mended", 6, "1")]);
    assert_eq!(owed(&project), ["2026-06,cust-1,38", "2026-07,cust-1,63", "2026-08,cust-1,93"]);
    ok(&["audit", "-C", project.text()]);
}

//! Rules that read their own earlier charges: each month follows the one before, whatever is folded, comes late or fails.

use serde_json::Value;

use crate::engine::{Engine, ratemill, sql, wait};
use crate::project::{Project, kwh};
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

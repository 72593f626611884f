//! Open windows over restarts: what was before them, rules that come later than their usage, and reference data that changes.

use serde_json::Value;

use crate::changes::{amendment, void};
use crate::engine::Engine;
use crate::project::{Project, RULE, kwh};
use crate::running::running;

/// What a subject had at the beginning of the month, and what came in it.
const LEVELS: &str = "CREATE MATERIALIZED VIEW levels
WITH (window = 'month', grace = '3650 days', effective_from = '2026-09-01', carry = 'subject, meter', fan_out = 'allowed') AS
WITH events AS (
    SELECT o.subject, o.quantity FROM opening o WHERE o.meter = 'kwh'
    UNION ALL
    SELECT u.subject, u.quantity FROM usage u WHERE u.meter = 'kwh')
SELECT l.subject AS customer_id, 'Level' AS item, sum(l.quantity) AS amount, 'EUR' AS currency FROM events l GROUP BY l.subject";

/// `customer month amount` of each running charge, in order.
fn owed(engine: &Engine, query: &str) -> Vec<String> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
    let row = |row: &Value| format!("{} {} {}", text(row, "customer_id"), &text(row, "window_start")[5..7], text(row, "amount"));
    let mut found: Vec<String> = running(engine, query).iter().map(row).collect();
    found.sort();
    found
}

fn metric(engine: &Engine, name: &str) -> u64 {
    let (_, metrics) = engine.get("/metrics");
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)).map_or("0", str::trim);
    value.parse().unwrap()
}

/// How many events each start so far has read.
fn events_read(project: &Project) -> Vec<String> {
    let log = std::fs::read_to_string(project.path().join("engine.stderr")).unwrap();
    let lines = log.lines().filter(|line| line.contains("open windows are folded"));
    lines.map(|line| line.split_whitespace().find(|word| word.starts_with("events=")).unwrap().to_owned()).collect()
}

#[test]
fn what_was_before_open_windows_follows_late_and_changed_events() {
    let steps = [
        (kwh("a", "m1", "2026-09-10T00:00:00Z", "10"), vec!["m1 09 10"]),
        (kwh("b", "m1", "2026-10-05T00:00:00Z", "1"), vec!["m1 09 10", "m1 10 11"]),
        // Late: October opens with another event.
        (kwh("c", "m1", "2026-09-20T00:00:00Z", "20"), vec!["m1 09 30", "m1 10 21"]),
        // Before all that the rule rates.
        (kwh("d", "m1", "2026-08-31T00:00:00Z", "5"), vec!["m1 09 35", "m1 10 21"]),
        (kwh("x", "m2", "2026-10-31T00:00:00Z", "100"), vec!["m1 09 35", "m1 10 21", "m2 10 100"]),
        (void("v-c", "c"), vec!["m1 09 15", "m1 10 11", "m2 10 100"]),
        (amendment("am-a", 1, &kwh("a", "m1", "2026-09-09T00:00:00Z", "7")), vec!["m1 09 12", "m1 10 8", "m2 10 100"]),
        // Of another subject now: October of m2 opens with it, and that of m1 with what was before.
        (amendment("am-a2", 2, &kwh("a", "m2", "2026-09-09T00:00:00Z", "7")), vec!["m1 09 5", "m1 10 6", "m2 09 7", "m2 10 107"]),
        (void("v-d", "d"), vec!["m1 10 1", "m2 09 7", "m2 10 107"]),
        // Its void is there already.
        (void("v-e", "e"), vec!["m1 10 1", "m2 09 7", "m2 10 107"]),
        (kwh("e", "m1", "2026-09-30T00:00:00Z", "1000"), vec!["m1 10 1", "m2 09 7", "m2 10 107"]),
        (kwh("f", "m1", "2026-09-29T00:00:00Z", "3"), vec!["m1 09 3", "m1 10 4", "m2 09 7", "m2 10 107"]),
    ];
    let ways = [
        ("true", "100 milliseconds", "0 seconds"),
        ("true", "100 milliseconds", "1 hour"),
        ("true", "1 hour", "1 hour"),
        ("false", "100 milliseconds", "1 hour"),
    ];
    for (fold, interval, checkpoint) in ways {
        let project = Project::new(&format!(
            "[epoch]\ninterval = \"{interval}\"\nfold = {fold}\ncheckpoint = \"{checkpoint}\"\n[http]\nlisten = \"127.0.0.1:0\"\n"
        ));
        project.write("rules/levels.sql", LEVELS);
        let mut engine = Engine::start(project.path());
        for (index, (message, expected)) in steps.iter().enumerate() {
            engine.send(std::slice::from_ref(message));
            for _ in 0..2 {
                assert_eq!(owed(&engine, "?rule=levels"), *expected, "step {index}, fold {fold}, {interval}, {checkpoint}");
            }
            assert!(index > 3 || fold == "false" || metric(&engine, "ratemill_running_groups_total") > 0, "step {index} is not folded");
            match index % 4 {
                1 => drop(engine.stop()),
                3 => engine.kill(),
                _ => continue,
            }
            engine = Engine::start(project.path());
            assert_eq!(owed(&engine, "?rule=levels"), *expected, "after a restart, step {index}, fold {fold}, {interval}, {checkpoint}");
        }
        assert_eq!(owed(&engine, "?rule=levels&customer_id=m2"), ["m2 09 7", "m2 10 107"]);
        engine.stop();
    }
}

#[test]
fn a_rule_that_comes_later_has_running_charges_of_the_usage_before_it() {
    for fold in ["true", "false"] {
        let project = Project::new(&format!("[epoch]\ninterval = \"100 milliseconds\"\nfold = {fold}\n[http]\nlisten = \"127.0.0.1:0\"\n"));
        project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
        let engine = Engine::start(project.path());
        engine.send(&[
            kwh("a", "m1", "2026-09-10T00:00:00Z", "10"),
            kwh("b", "m2", "2026-10-10T00:00:00Z", "20"),
            kwh("c", "m2", "2026-08-10T00:00:00Z", "40"),
        ]);
        engine.stop();
        let rule = "CREATE MATERIALIZED VIEW counted WITH (window = 'month', grace = '3650 days', effective_from = '2026-09-01') AS
            SELECT u.subject AS customer_id, 'Events' AS item, sum(u.quantity) AS amount, 'EUR' AS currency FROM usage u GROUP BY u.subject";
        project.write("rules/counted.sql", rule);
        let mut engine = Engine::start(project.path());
        assert_eq!(owed(&engine, "?rule=counted"), ["m1 09 10", "m2 10 20"], "fold {fold}");
        // Nothing was written yet: the next start finds the same.
        engine.kill();
        engine = Engine::start(project.path());
        assert_eq!(owed(&engine, "?rule=counted"), ["m1 09 10", "m2 10 20"]);
        engine.send(&[kwh("d", "m2", "2026-10-11T00:00:00Z", "2")]);
        assert_eq!(owed(&engine, "?rule=counted"), ["m1 09 10", "m2 10 22"]);
        engine.stop();
        // It goes, usage comes, and it comes back.
        std::fs::remove_file(project.path().join("rules/counted.sql")).unwrap();
        let engine = Engine::start(project.path());
        engine.send(&[kwh("e", "m1", "2026-09-12T00:00:00Z", "3"), void("v-b", "b")]);
        engine.stop();
        project.write("rules/counted.sql", rule);
        let engine = Engine::start(project.path());
        for _ in 0..2 {
            assert_eq!(owed(&engine, "?rule=counted"), ["m1 09 13", "m2 10 2"], "fold {fold}");
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        engine.stop();
    }
}

#[test]
fn a_price_that_is_read_above_the_sum_leaves_the_folded_state_as_it_is() {
    let project = Project::new("[epoch]\ninterval = \"100 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.write(
        "rules/energy.sql",
        "CREATE MATERIALIZED VIEW energy WITH (window = 'month', grace = '3650 days', effective_from = '2026-09-01', fan_out = 'allowed') AS
         SELECT a.customer_id, 'Energy' AS item, graduated(a.quantity, p.tiers) AS amount, a.currency FROM (
             SELECT c.customer_id, c.plan, c.currency, sum(u.quantity) AS quantity
             FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
             GROUP BY c.customer_id, c.plan, c.currency) a
         JOIN prices p ON p.plan = a.plan",
    );
    let engine = Engine::start(project.path());
    engine.send(&[kwh("a", "m1", "2026-09-10T00:00:00Z", "10")]);
    assert_eq!(owed(&engine, ""), ["cust-1 09 8"]);
    engine.stop();
    project.write("reference/prices.csv", "plan,up_to,unit_price,flat_fee\nhome,100,0.40,5\nhome,,0.25,0\n");
    let engine = Engine::start(project.path());
    assert_eq!(owed(&engine, ""), ["cust-1 09 9"]);
    engine.stop();
    // Contracts are joined below it: usage is read again.
    let contracts = std::fs::read_to_string(project.path().join("reference/contracts.csv")).unwrap();
    project.write("reference/contracts.csv", &contracts.replace("cust-1,", "cust-one,"));
    let engine = Engine::start(project.path());
    assert_eq!(owed(&engine, ""), ["cust-one 09 9"]);
    engine.stop();
    assert_eq!(events_read(&project)[1..], ["events=0", "events=1"]);
}

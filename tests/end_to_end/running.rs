//! Running charges and folding: what open windows come to right after the answer, and charges that are the same as without.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::engine::{Engine, ok, sql, try_request, wait};
use crate::project::{PERIOD_RULE, Project, RULE, kwh, lines, september};

const NET: &str = "SELECT rule, customer_id, item, window_start, sum(amount), sum(quantity) FROM charges
     GROUP BY rule, customer_id, item, window_start HAVING sum(amount) <> 0 ORDER BY 1, 2, 3, 4";

pub fn running(engine: &Engine, query: &str) -> Vec<Value> {
    let (status, body) = engine.get(&format!("/v1/running-charges{query}"));
    assert_eq!(status, 200, "{body}");
    // The body is sent in chunks: their lengths stand between the lines.
    body.lines().filter(|line| line.starts_with('{')).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn running_charges_have_all_usage_that_was_acknowledged() {
    for fold in [true, false] {
        // Epochs that come by themselves, and one at the end only: the answer is the same.
        for interval in ["100 milliseconds", "1 hour"] {
            let project = Project::new(&format!("[epoch]\ninterval = \"{interval}\"\nfold = {fold}\n[http]\nlisten = \"127.0.0.1:0\"\n"));
            project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
            project.write(
                "rules/vat.sql",
                "CREATE MATERIALIZED VIEW vat WITH (window = 'month', grace = '3650 days', effective_from = '2026-09-01') AS
                 SELECT e.customer_id, 'VAT' AS item, sum(e.amount) * 0.2 AS amount, e.currency FROM energy e GROUP BY e.customer_id, e.currency",
            );
            let engine = Engine::start(project.path());
            for (index, amount) in ["8", "11", "14"].iter().enumerate() {
                engine.send(&[kwh(&format!("e{index}"), "m1", "2026-09-03T10:00:00Z", "10")]);
                // Tiers: 0.30 each and 5 once.
                let energy = running(&engine, "?rule=energy&customer_id=cust-1");
                assert_eq!(energy.len(), 1, "{energy:?}");
                assert_eq!((energy[0]["amount"].as_str(), energy[0]["rule"].as_str()), (Some(*amount), Some("energy")));
                assert_eq!(energy[0]["window_start"], json!("2026-09-01T00:00:00Z"));
            }
            let all = running(&engine, "");
            let amounts: Vec<(&str, &str)> =
                all.iter().map(|row| (row["rule"].as_str().unwrap(), row["amount"].as_str().unwrap())).collect();
            assert_eq!(amounts, [("energy", "14"), ("vat", "2.8")], "fold {fold}, {interval}");
            assert!(running(&engine, "?customer_id=nobody").is_empty());
            let (status, body) = engine.get("/v1/running-charges?rule=enrgy");
            assert!(status == 404 && body.contains("did you mean `energy`"), "{status} {body}");
            engine.stop();
            // A restart has the same open windows.
            let engine = Engine::start(project.path());
            engine.send(&[kwh("e9", "m1", "2026-09-03T10:00:00Z", "10")]);
            assert_eq!(running(&engine, "?rule=energy")[0]["amount"], json!("17"));
            engine.stop();
            assert_eq!(sql(project.path(), "SELECT count(*) FROM usage"), ["4"]);
        }
    }
}

#[test]
fn a_key_that_only_sends_usage_reads_no_charges() {
    let hash = |key: &str| hex::encode(Sha256::digest(key));
    let project = Project::new(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[[http.keys]]\nname = \"meters\"\nsha256 = \"{}\"\n[[http.keys]]\nname = \"billing\"\nsha256 = \"{}\"\ncharges = true\n",
        hash("send"),
        hash("read")
    ));
    let engine = Engine::start(project.path());
    let ask = |key: &str| {
        let bearer = format!("Bearer {key}");
        try_request(&engine.address, "GET", "/v1/running-charges", &[("authorization", &bearer)], b"").unwrap().0
    };
    assert_eq!([ask("send"), ask("read"), ask("other")], [403, 200, 401]);
    assert_eq!(engine.get("/v1/running-charges").0, 401);
}

#[test]
fn folded_windows_are_charged_as_windows_that_are_read() {
    let rules = |project: &Project| {
        project.write("rules/energy.sql", &RULE.replace("1 day", "1 second"));
        project
            .write("rules/daily.sql", &RULE.replace("1 day", "1 second").replace("'month'", "'day'").replace("VIEW energy", "VIEW daily"));
        // The highest quarter of an hour of the month, and how many meters there were.
        project.write(
            "rules/demand.sql",
            "CREATE MATERIALIZED VIEW demand WITH (window = 'month', grace = '1 second', effective_from = '2026-09-01') AS
             SELECT q.customer_id, 'Demand' AS item, max(q.kwh) AS quantity, max(q.kwh) * 2 AS amount, q.currency FROM (
                 SELECT c.customer_id, c.currency, time_bucket(u.time, '15 minutes') AS quarter, sum(u.quantity) AS kwh
                 FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
                 WHERE u.meter = 'kwh' GROUP BY 1, 2, 3) q
             GROUP BY q.customer_id, q.currency",
        );
        project.write(
            "rules/fee.sql",
            "CREATE MATERIALIZED VIEW fee WITH (window = 'month', grace = '1 second', effective_from = '2026-09-01') AS
             SELECT c.customer_id, 'Fee' AS item, CASE WHEN count(u.id) = 0 THEN 1 ELSE 3 END AS amount, c.currency
             FROM billing_window w CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c LEFT JOIN usage u ON u.subject = c.subject
             GROUP BY c.customer_id, c.currency",
        );
    };
    let events = september(400);
    let project = Project::with_http();
    rules(&project);
    let engine = Engine::start(project.path());
    for part in events.chunks(60) {
        engine.send(part);
        std::thread::sleep(std::time::Duration::from_millis(150));
    }
    // The second time, everything is a duplicate.
    engine.send(&events);
    let whole = Project::new("");
    rules(&whole);
    let file = whole.write("all.ndjson", &lines(&events));
    ok(&["rate", "-C", whole.text(), "--usage", file.to_str().unwrap(), "--to", "2026-10-01"]);
    let expected: Vec<String> = sql(whole.path(), NET);
    assert!(expected.len() > 40, "{expected:?}");
    let of_september = |project: &Project| -> Vec<String> {
        sql(project.path(), &NET.replace("GROUP BY", "WHERE window_start < '2026-10-01T00:00:00Z' GROUP BY"))
    };
    wait("every window is charged", || of_september(&project) == expected);
    let (_, metrics) = engine.get("/metrics");
    let folded = metrics.lines().find_map(|line| line.strip_prefix("ratemill_windows_folded_total "));
    assert!(folded.is_some_and(|count| count != "0"), "{folded:?}");
    engine.stop();
    assert_eq!(of_september(&project), expected);
}

#[test]
fn checkpoints_save_reading_and_a_damaged_one_changes_nothing() {
    let project = Project::new("[epoch]\ninterval = \"100 milliseconds\"\ncheckpoint = \"0 seconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
    let log = || std::fs::read_to_string(project.path().join("engine.stderr")).unwrap();
    let folded = || -> Vec<String> { log().lines().filter(|line| line.contains("open windows are folded")).map(str::to_owned).collect() };
    let checkpoints = || -> Vec<std::path::PathBuf> {
        let found = std::fs::read_dir(project.path().join("lake/checkpoints")).unwrap().map(|found| found.unwrap().path());
        let mut found: Vec<_> = found.filter(|path| path.is_dir() && std::fs::read_dir(path).unwrap().next().is_some()).collect();
        found.sort();
        found
    };
    let mut amount = 5;
    let mut round = |id: usize, spoil: &dyn Fn()| {
        let engine = Engine::start(project.path());
        engine.send(&[kwh(&format!("e{id}"), "m1", "2026-09-03T10:00:00Z", "10")]);
        amount += 3;
        assert_eq!(running(&engine, "?rule=energy")[0]["amount"], json!(amount.to_string()), "round {id}");
        engine.stop();
        spoil();
    };
    round(0, &|| assert!(!checkpoints().is_empty()));
    round(1, &|| {});
    assert!(folded()[1].contains("events=0"), "{}", folded()[1]);
    // The newest is damaged: everything is read again.
    round(2, &|| {
        let newest = checkpoints().pop().unwrap();
        for state in std::fs::read_dir(newest).unwrap() {
            let path = state.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let last = bytes.len() - 9;
            bytes[last] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    });
    round(3, &|| {
        // The newest is away: the older one is taken, and what came after it is read.
        let newest = checkpoints().pop().unwrap();
        std::fs::remove_file(newest.with_extension("json")).unwrap();
    });
    round(4, &|| {});
    round(5, &|| {
        // A version that nobody knows is passed over.
        let newest = checkpoints().pop().unwrap().with_extension("json");
        let text = std::fs::read_to_string(&newest).unwrap();
        std::fs::write(&newest, text.replace("\"format\":1", "\"format\":999")).unwrap();
    });
    round(6, &|| assert!(checkpoints().len() <= 3, "{:?}", checkpoints()));
    assert!(folded()[3].contains("events=") && !folded()[3].contains("events=0"), "{}", folded()[3]);
}

#[test]
fn contracts_that_change_while_the_engine_is_away_lose_no_usage() {
    let project = Project::new("[epoch]\ninterval = \"100 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.contracts("m1,cust-1,k1,home,EUR,1,2026-09-01,\n");
    let rule = PERIOD_RULE.replace("effective_from = '2026-01-01'", "grace = '3650 days', effective_from = '2026-09-01'");
    project.write("rules/energy.sql", &rule);
    let engine = Engine::start(project.path());
    engine.send(&[kwh("a", "m1", "2026-09-03T10:00:00Z", "1"), kwh("b", "m2", "2026-09-04T10:00:00Z", "10")]);
    engine.stop();
    // The period is cut anew, and the second subject has a contract after all.
    project.contracts("m1,cust-1,k1,home,EUR,2,2026-09-01,\nm2,cust-2,k2,home,EUR,3,2026-09-01,\n");
    let engine = Engine::start(project.path());
    engine.send(&[kwh("c", "m1", "2026-09-05T10:00:00Z", "2"), kwh("d", "m2", "2026-09-05T10:00:00Z", "20")]);
    let owed = |engine: &Engine| -> Vec<(String, String)> {
        let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
        running(engine, "").iter().map(|row| (text(row, "customer_id"), text(row, "amount"))).collect()
    };
    let expected = [("cust-1", "3"), ("cust-2", "30")].map(|(customer, amount)| (customer.to_owned(), amount.to_owned()));
    for _ in 0..2 {
        let mut found = owed(&engine);
        found.sort();
        assert_eq!(found, expected);
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    engine.stop();
}

//! `ratemill unrated`: what nothing charges, why, and how it is charged once its cause is mended.

use serde_json::{Value, json};

use crate::batch::net;
use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::periods::rate;
use crate::project::{PERIOD_RULE, Project, RULE, kwh};

/// With plans that have a status, and prices that a plan may lack.
fn project(toml: &str) -> Project {
    let project = Project::new(toml);
    project.write("rules/energy.sql", &RULE.replace("WHERE u.meter = 'kwh'", "WHERE u.meter = 'kwh' AND c.plan <> 'paused'"));
    contracts(&project, "");
    project
}

const CONTRACTS: &str = "m1,cust-1,home,EUR,2026-01-01,\nm2,cust-2,home,EUR,2026-01-01,2026-09-10\nm3,cust-3,office,EUR,2026-01-01,\n\
    m4,cust-4,paused,EUR,2026-01-01,\n";

fn contracts(project: &Project, more: &str) {
    project.write("reference/contracts.csv", &format!("subject,customer_id,plan,currency,valid_from,valid_to\n{CONTRACTS}{more}"));
}

const PRICES: &str = "plan,up_to,unit_price,flat_fee\nhome,100,0.30,5\nhome,,0.25,0\npaused,,0.25,0\n";

fn prices(project: &Project, more: &str) {
    project.write("reference/prices.csv", &format!("{PRICES}{more}"));
}

fn of_meter(id: &str, meter: &str) -> Value {
    let mut event = kwh(id, "m1", "2026-09-05T00:00:00Z", "3");
    event["type"] = json!(meter);
    event
}

fn events() -> Vec<Value> {
    vec![
        kwh("good", "m1", "2026-09-02T00:00:00Z", "10"),
        kwh("ended", "m2", "2026-09-20T00:00:00Z", "1"),
        kwh("unknown", "m9", "2026-09-03T00:00:00Z", "2"),
        kwh("unknown too", "m9", "2026-09-04T00:00:00Z", "2.5"),
        kwh("unknown other", "m8", "2026-09-05T00:00:00Z", "4"),
        kwh("unpriced", "m3", "2026-09-06T00:00:00Z", "1"),
        kwh("paused", "m4", "2026-09-07T00:00:00Z", "1"),
        of_meter("no rule", "gas"),
    ]
}

fn report(project: &Project, more: &[&str]) -> Value {
    serde_json::from_str(&ok(&[&["unrated", "-C", project.text(), "--format", "json"], more].concat())).unwrap()
}

/// Reason, state, events, subjects, quantity and the first example of each group.
fn groups(project: &Project) -> Vec<String> {
    let report = report(project, &[]);
    let told = |group: &Value| {
        let state = match (group["waits"].as_bool().unwrap(), group["published"].as_bool().unwrap()) {
            (true, _) => "waits",
            (_, true) => "published",
            _ => "open",
        };
        let reason = group["reason"].as_str().unwrap().split(" with ").next().unwrap().to_owned();
        let text = |name: &str| group[name].as_str().map_or_else(|| group[name].to_string(), str::to_owned);
        let example = group["examples"][0]["id"].as_str().unwrap();
        format!("{} | {reason} | {state} | {} {} {} | {example}", text("rule"), text("events"), text("subjects"), text("quantity"))
    };
    let mut found: Vec<String> = report["groups"].as_array().unwrap().iter().map(told).collect();
    found.sort();
    for books in report["books"].as_array().unwrap() {
        let number = |name: &str| books[name].as_i64().unwrap();
        assert_eq!(number("claimed"), number("rated") + number("unrated"), "{books}");
    }
    found
}

fn audit_is_clean(project: &Project) {
    let output = ratemill(&["audit", "-C", project.text()], &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

const ALL: [&str; 6] = [
    "energy | no row of contracts | STATE | 1 1 1 | ended",
    "energy | no row of contracts | STATE | 3 2 8.5 | unknown",
    "energy | no row of prices | STATE | 1 1 1 | unpriced",
    "energy | not c.plan != 'paused' | STATE | 1 1 1 | paused",
    "null | no rule | open | 1 1 3 | no rule",
    "",
];

fn all(state: &str) -> Vec<String> {
    let mut all: Vec<String> = ALL[..5].iter().map(|line| line.replace("STATE", state)).collect();
    all.sort();
    all
}

#[test]
fn usage_that_nothing_charges_is_listed_with_the_reason() {
    let project = project("");
    let output = ratemill(&["unrated", "-C", project.text()], &[]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("holds no completed epoch yet"));
    prices(&project, "");
    rate(&project, "usage.ndjson", &events(), &["--to", "2026-09-01"]);
    assert_eq!(groups(&project), all("open"));
    rate(&project, "usage.ndjson", &events(), &["--close"]);
    assert_eq!(groups(&project), all("published"));
    let listed = report(&project, &["--list", "--rule", "energy"]);
    let ids: Vec<&str> = listed["listed"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["unknown", "unknown too", "unknown other", "unpriced", "paused", "ended"]);
    assert_eq!(listed["events"], json!(6));
    assert_eq!(listed["books"][0]["claimed"], json!(7));
    let text = ok(&["unrated", "-C", project.text(), "--list", "--limit", "1"]);
    assert!(text.contains("| energy") && text.contains("no row of prices") && text.contains("test/unknown"), "{text}");
    let wrong = ratemill(&["unrated", "-C", project.text(), "--rule", "enregy"], &[]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("energy"));
}

#[test]
fn when_the_missing_row_arrives_usage_is_charged_once_and_nobody_asked() {
    let project = project("[http]\nlisten = \"127.0.0.1:0\"\n");
    prices(&project, "");
    rate(&project, "usage.ndjson", &events(), &["--close"]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,10,8"]);
    // An unknown subject becomes known; another is the second of a customer who is charged already.
    contracts(&project, "m9,cust-9,home,EUR,2026-01-01,\nm8,cust-1,home,EUR,2026-01-01,\n");
    let engine = Engine::start(project.path());
    let charged = ["cust-1,Energy,2026-09,EUR,14,9.2", "cust-9,Energy,2026-09,EUR,4.5,6.35"];
    wait("the usage is charged", || net(&project) == charged);
    assert_eq!(sql(project.path(), "SELECT DISTINCT cause FROM charges WHERE class = 'correction'"), ["unrated usage mended"]);
    audit_is_clean(&project);
    // Usage that comes late is charged as before, by the reference data that published the window last.
    engine.send(&[kwh("late", "m9", "2026-09-08T00:00:00Z", "1")]);
    let charged = ["cust-1,Energy,2026-09,EUR,14,9.2", "cust-9,Energy,2026-09,EUR,5.5,6.65"];
    wait("late usage is charged", || net(&project) == charged);
    engine.stop();
    let rows = sql(project.path(), "SELECT count(*) FROM charges");
    // The last of what is missing, by the batch: a price and a contract that goes on.
    prices(&project, "office,,0.50,0\n");
    let longer = CONTRACTS.replace(",2026-09-10", ",");
    let header = "subject,customer_id,plan,currency,valid_from,valid_to";
    project
        .write("reference/contracts.csv", &format!("{header}\n{longer}m9,cust-9,home,EUR,2026-01-01,\nm8,cust-1,home,EUR,2026-01-01,\n"));
    rate(&project, "usage.ndjson", &events(), &[]);
    let charged = [
        "cust-1,Energy,2026-09,EUR,14,9.2",
        "cust-2,Energy,2026-09,EUR,1,5.3",
        "cust-3,Energy,2026-09,EUR,1,0.5",
        "cust-9,Energy,2026-09,EUR,5.5,6.65",
    ];
    assert_eq!(net(&project), charged);
    audit_is_clean(&project);
    assert_eq!(
        groups(&project),
        ["energy | not c.plan != 'paused' | published | 1 1 1 | paused", "null | no rule | open | 1 1 3 | no rule"]
    );
    // Nothing twice, however often it starts.
    let after = sql(project.path(), "SELECT count(*) FROM charges");
    assert_ne!(rows, after);
    rate(&project, "usage.ndjson", &events(), &["--close"]);
    Engine::start(project.path()).stop();
    assert_eq!(sql(project.path(), "SELECT count(*) FROM charges"), after);
}

#[test]
fn where_other_charges_would_change_mended_usage_waits() {
    let project = project("");
    prices(&project, "");
    rate(&project, "usage.ndjson", &events(), &["--close"]);
    contracts(&project, "m9,cust-9,home,EUR,2026-01-01,\n");
    project.write("reference/prices.csv", &PRICES.replace("0.30", "0.40"));
    for _ in 0..2 {
        rate(&project, "usage.ndjson", &events(), &["--close"]);
        assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,10,8"]);
        audit_is_clean(&project);
    }
    let found = groups(&project);
    assert!(found.contains(&"energy | no row of contracts | waits | 2 1 4.5 | unknown".to_owned()), "{found:?}");
    assert!(found.contains(&"energy | no row of contracts | published | 1 1 4 | unknown other".to_owned()), "{found:?}");
    // A person posts both.
    ok(&["apply", "-C", project.text()]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,10,9", "cust-9,Energy,2026-09,EUR,4.5,6.8"]);
    audit_is_clean(&project);
    assert!(!groups(&project).iter().any(|group| group.contains("waits")));
}

#[test]
fn late_usage_of_somebody_who_came_after_publication_is_charged() {
    let project = project("[http]\nlisten = \"127.0.0.1:0\"\n");
    prices(&project, "");
    rate(&project, "usage.ndjson", &[kwh("good", "m1", "2026-09-02T00:00:00Z", "10")], &["--close"]);
    contracts(&project, "m9,cust-9,home,EUR,2026-01-01,\n");
    let engine = Engine::start(project.path());
    engine.send(&[kwh("late", "m9", "2026-09-03T00:00:00Z", "1"), kwh("late too", "m1", "2026-09-03T00:00:00Z", "1")]);
    let charged = ["cust-1,Energy,2026-09,EUR,11,8.3", "cust-9,Energy,2026-09,EUR,1,5.3"];
    wait("both are charged", || net(&project) == charged);
    // Killed in the middle of it or not: once.
    engine.send(&[kwh("void", "m9", "2026-09-03T00:00:00Z", "1")]);
    engine.kill();
    let engine = Engine::start(project.path());
    let charged = ["cust-1,Energy,2026-09,EUR,11,8.3", "cust-9,Energy,2026-09,EUR,2,5.6"];
    wait("the rest is charged", || net(&project) == charged);
    engine.stop();
    audit_is_clean(&project);
    assert!(groups(&project).is_empty());
}

#[test]
fn usage_without_a_contract_belongs_to_no_billing_period_until_it_has_one() {
    let project = Project::new("");
    project.write("rules/energy.sql", PERIOD_RULE);
    project.contracts("m1,cust-1,k1,home,EUR,10,2026-01-01,\n");
    let usage = [
        kwh("a", "m1", "2026-03-02T00:00:00Z", "1"),
        kwh("b", "m2", "2026-03-03T00:00:00Z", "2"),
        kwh("c", "m3", "2026-03-04T00:00:00Z", "4"),
    ];
    rate(&project, "usage.ndjson", &usage, &["--to", "2026-04-01"]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-03,EUR,,1"]);
    assert_eq!(groups(&project), ["energy | no row of contracts | open | 2 2 6 | b"]);
    // A subject of the same contract, whose period is published, and a contract of its own.
    project.contracts("m1,cust-1,k1,home,EUR,10,2026-01-01,\nm2,cust-1,k1,home,EUR,10,2026-01-01,\nm3,cust-3,k3,home,EUR,1,2026-01-01,\n");
    rate(&project, "usage.ndjson", &usage, &["--to", "2026-04-01"]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-03,EUR,,3", "cust-3,Energy,2026-03,EUR,,4"]);
    assert!(groups(&project).is_empty());
    audit_is_clean(&project);
}

#[test]
fn a_reader_that_fails_while_mended_usage_is_charged_follows_later() {
    let project = project("");
    prices(&project, "");
    let tax = "CREATE MATERIALIZED VIEW tax WITH (window = 'month', grace = '1 day', effective_from = '2026-09-01') AS
        SELECT e.customer_id, 'Tax' AS item, sum(e.amount) * 0.1 AS amount, e.currency FROM energy e GROUP BY e.customer_id, e.currency";
    project.write("rules/tax.sql", tax);
    rate(&project, "usage.ndjson", &events(), &["--close"]);
    assert_eq!(net(&project), ["cust-1,Energy,2026-09,EUR,10,8", "cust-1,Tax,2026-09,EUR,,0.8"]);
    // The version that published it cannot be read when the contract arrives.
    project.write("rules/tax.sql", &format!("{tax} -- the same"));
    let versions = std::fs::read_dir(project.path().join("lake/rules")).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let version = versions.filter(|path| named(path).starts_with("tax-") && named(path).ends_with(".sql")).last().unwrap();
    let away = version.with_extension("away");
    std::fs::rename(&version, &away).unwrap();
    contracts(&project, "m9,cust-9,home,EUR,2026-01-01,\n");
    let again = |project: &Project| {
        let usage = project.write("nothing.ndjson", "");
        ratemill(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap()], &[]);
    };
    again(&project);
    let energy = ["cust-1,Energy,2026-09,EUR,10,8", "cust-9,Energy,2026-09,EUR,4.5,6.35"];
    assert_eq!(net(&project), [energy[0], "cust-1,Tax,2026-09,EUR,,0.8", energy[1]]);
    std::fs::rename(&away, &version).unwrap();
    again(&project);
    assert_eq!(net(&project), [energy[0], "cust-1,Tax,2026-09,EUR,,0.8", energy[1], "cust-9,Tax,2026-09,EUR,,0.635"]);
    assert_eq!(sql(project.path(), "SELECT DISTINCT cause FROM charges WHERE class = 'correction'"), ["unrated usage mended"]);
    audit_is_clean(&project);
}

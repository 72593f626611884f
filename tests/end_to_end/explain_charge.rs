//! `ratemill explain charge`: every charge is what rating it again gives, and is traced to its events.

use std::path::Path;

use ratemill_schemas::Decimal;
use serde_json::{Value, json};

use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::examples::{EXAMPLES, copy};
use crate::project::{Project, kwh, lines};
use crate::servers::python;

fn explain(folder: &Path, id: &str) -> Value {
    explain_all(folder, &[id]).pop().unwrap()
}

/// Several charges, in their order.
fn explain_all(folder: &Path, ids: &[&str]) -> Vec<Value> {
    let options = ["-C", folder.to_str().unwrap(), "--format", "json", "--events", "100000"];
    let text = ok(&[&["explain", "charge"], ids, &options].concat());
    serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect()
}

fn decimal(value: &Value) -> Decimal {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).parse().unwrap()
}

/// The sum of these decimals.
fn total<'v>(values: impl Iterator<Item = &'v Value>) -> Decimal {
    values.fold(Decimal::ZERO, |sum, value| sum.plus(decimal(value)).unwrap())
}

fn events(explained: &Value) -> Vec<(&str, &str)> {
    let events = explained["events"].as_array().unwrap().iter();
    events.map(|event| (event["source"].as_str().unwrap(), event["id"].as_str().unwrap())).collect()
}

#[test]
fn every_charge_of_every_example_is_what_it_is_made_of() {
    // Of these rules the quantity is the sum of the events, or their number.
    let summed = ["meeting_rooms", "printed_pages", "receptionist_calls", "calls", "energy_by_time"];
    for (name, options) in EXAMPLES {
        let copied = copy(name);
        let project = copied.path().to_str().unwrap();
        let usage = copied.path().join("usage");
        ok(&[&["rate", "-C", project, "--usage", usage.to_str().unwrap()], options].concat());
        let charges = sql(copied.path(), "SELECT charge_id, rule FROM charges ORDER BY 2, 1");
        assert!(charges.len() > 10, "{name}");
        let charges: Vec<(&str, &str)> = charges.iter().map(|line| line.split_once(',').unwrap()).collect();
        let ids: Vec<&str> = charges.iter().map(|(id, _)| *id).collect();
        let all = explain_all(copied.path(), &ids);
        assert_eq!(all.len(), ids.len());
        for ((id, rule), explained) in charges.into_iter().zip(all) {
            let said = format!("{name} {rule}: {explained:#}");
            assert_eq!(explained["recomputed"]["equal"], true, "{said}");
            assert_eq!(explained["charge"]["charge_id"], id, "{said}");
            let untraced = explained["notes"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|note| note.as_str().unwrap().contains("not listed: ") || note.as_str().unwrap().contains("not shown"));
            assert_eq!(untraced.count(), 0, "{said}");
            if summed.contains(&rule) {
                assert_eq!(
                    total(explained["totals"].as_array().unwrap().iter().map(|total| &total["quantity"])),
                    decimal(&explained["charge"]["quantity"]),
                    "{said}"
                );
                assert_eq!(events(&explained).len() as u64, explained["totals"][0]["count"].as_u64().unwrap(), "{said}");
            }
            for call in explained["pricing"].as_array().unwrap() {
                // The steps of a call are without its connection fee.
                for row in call["calls"].as_array().unwrap().iter().filter(|_| call["function"] != "call_charge") {
                    let steps = row["steps"].as_array().map(|steps| total(steps.iter().map(|step| &step["amount"])));
                    assert!(steps.is_none_or(|steps| steps == decimal(&row["result"])), "{said}");
                }
            }
            let reads_rules = ["minimum_spend", "commitment", "commission", "royalties", "electricity_tax", "vat"].contains(&rule);
            let ids = explained["charges"].as_array().unwrap();
            assert!(reads_rules || ids.iter().all(|read| read["rule"] == rule), "{said}");
            assert!(ids.iter().all(|read| read["charge_id"].as_str().is_some_and(|id| id.len() == 32)), "{said}");
        }
    }
}

#[test]
fn prices_events_and_charges_behind_a_charge_are_named() {
    let copied = copy("business-centre");
    let project = copied.path().to_str().unwrap();
    ok(&["rate", "-C", project, "--usage", copied.path().join("usage").to_str().unwrap()]);
    let of = |rule: &str, customer: &str| {
        let query =
            format!("SELECT charge_id FROM charges WHERE rule = '{rule}' AND customer_id = '{customer}' ORDER BY window_start LIMIT 1");
        explain(copied.path(), &sql(copied.path(), &query)[0])
    };
    let calls = of("receptionist_calls", "lumen");
    let price = &calls["pricing"][0];
    assert_eq!((&price["function"], &price["column"]), (&json!("graduated"), &json!("amount")), "{calls:#}");
    assert_eq!(price["calls"][0]["arguments"][0], json!(["quantity", calls["charge"]["quantity"]]), "{calls:#}");
    assert_eq!(price["calls"][0]["result"], calls["charge"]["amount"], "{calls:#}");
    assert!(price["calls"][0]["steps"].as_array().unwrap().len() > 1, "{calls:#}");
    let tables: Vec<&str> = calls["reference"].as_array().unwrap().iter().map(|table| table["table"].as_str().unwrap()).collect();
    assert_eq!(tables, ["contracts", "prices"], "{calls:#}");
    assert!(calls["reference"].as_array().unwrap().iter().all(|table| table["count"] == 1), "{calls:#}");
    // Exactly the events of the customer's subject, meter and month.
    let query = "SELECT u.source, u.id FROM effective_usage u JOIN contracts c ON c.subject = u.subject
        WHERE c.customer_id = 'lumen' AND u.meter = 'receptionist_call' ORDER BY u.time, u.source, u.id";
    let expected = sql(copied.path(), query);
    let found: Vec<String> = events(&calls).iter().map(|(source, id)| format!("{source},{id}")).collect();
    assert!(!expected.is_empty() && found == expected, "{found:?}\n{expected:?}");
    let few = ok(&["explain", "charge", calls["charge"]["charge_id"].as_str().unwrap(), "-C", project, "--events", "2"]);
    assert!(few.contains(&format!("… and {} more", expected.len() - 2)) && few.contains("as stored, to the last digit"), "{few}");
    // A rule over rules names the charges that it read.
    let minimum = "SELECT charge_id, customer_id, window_start FROM charges WHERE rule = 'minimum_spend' ORDER BY 1 LIMIT 1";
    let minimum: Vec<String> = sql(copied.path(), minimum)[0].split(',').map(str::to_owned).collect();
    let explained = explain(copied.path(), &minimum[0]);
    let query = format!(
        "SELECT charge_id FROM charges WHERE rule <> 'minimum_spend' AND customer_id = '{}' AND window_start = '{}' ORDER BY 1",
        minimum[1], minimum[2]
    );
    let mut read: Vec<&str> = explained["charges"].as_array().unwrap().iter().map(|read| read["charge_id"].as_str().unwrap()).collect();
    read.sort_unstable();
    assert_eq!(read, sql(copied.path(), &query), "{explained:#}");
}

#[test]
fn corrections_are_explained_as_they_were_rated() {
    let project = Project::with_http();
    let usage = lines(&[kwh("a", "m1", "2026-09-03T10:00:00Z", "90"), kwh("b", "m1", "2026-09-04T10:00:00Z", "20")]);
    let usage = project.write("usage.ndjson", &usage);
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--to", "2026-10-01"]);
    let engine = Engine::start(project.path());
    engine.send(&[kwh("c", "m1", "2026-09-05T10:00:00Z", "5")]);
    wait("late usage is charged", || sql(project.path(), "SELECT count(*) FROM charges") == ["3"]);
    engine.send(&[json!({"specversion": "1.0", "source": "office", "id": "void", "type": "ratemill.void", "data": {"target": {"source": "test", "id": "a"}}})]);
    wait("the void is charged", || sql(project.path(), "SELECT count(*) FROM charges") == ["5"]);
    let ids = sql(project.path(), "SELECT charge_id FROM charges ORDER BY revision");
    // Today's rule and prices are other ones; charges are explained by theirs, beside the running engine.
    project.write("reference/prices.csv", "plan,up_to,unit_price,flat_fee\nhome,,0.50,0\n");
    let rule = std::fs::read_to_string(project.path().join("rules/energy.sql")).unwrap();
    project.write("rules/energy.sql", &rule.replace("'kWh'", "'kilowatt-hour'"));
    let behind = [vec!["a", "b"], vec!["a", "b"], vec!["a", "b", "c"], vec!["a", "b", "c"], vec!["b", "c"]];
    for (revision, (id, events_behind)) in (1..).zip(ids.iter().zip(behind)) {
        let explained = explain(project.path(), id);
        assert_eq!(explained["recomputed"]["equal"], true, "{explained:#}");
        assert_eq!(explained["chain"].as_array().unwrap().len(), 5, "{explained:#}");
        let found: Vec<&str> = events(&explained).into_iter().map(|(_, id)| id).collect();
        assert_eq!(found, events_behind, "revision {revision}: {explained:#}");
        let reversal = revision % 2 == 0;
        assert_eq!(explained["explains"].as_str().unwrap() == id, !reversal, "{explained:#}");
        assert_eq!(explained["charge"]["reverses"].is_string(), reversal, "{explained:#}");
    }
    let in_force: Vec<bool> =
        explain(project.path(), &ids[0])["chain"].as_array().unwrap().iter().map(|row| row["in_force"].as_bool().unwrap()).collect();
    assert_eq!(in_force, [false, false, false, false, true]);
    engine.stop();
    let shown = ok(&["explain", "charge", &ids[1][..8], "-C", project.text()]);
    assert!(shown.contains(&format!("it takes back {}", ids[0])), "{shown}");
    for (id, message) in [("0123", "at least its first 8"), ("00000000", "no charge has an id"), ("no-such-charge", "names no charge")] {
        let output = ratemill(&["explain", "charge", id, "-C", project.text()], &[]);
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(message), "{said}");
    }
    ok(&["explain", "energy", "-C", project.text()]);
    ok(&["explain", "rule", "energy", "-C", project.text()]);
}

#[test]
fn a_charge_that_is_not_what_rating_gives_is_told() {
    let project = Project::new("");
    let usage = project.write("usage.ndjson", &lines(&[kwh("a", "m1", "2026-09-03T10:00:00Z", "10")]));
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--to", "2026-10-01"]);
    let id = "0123456789abcdef0123456789abcdef";
    let tamper = format!(
        "import sys, polars\ntable = sys.argv[1] + '/lake/charges'\nrow = polars.read_delta(table).head(1)\n\
         row.with_columns(charge_id=polars.lit('{id}'), amount=polars.lit('8.000000000000000001').cast(row.schema['amount'])).write_delta(table, mode='append')\n"
    );
    python(&tamper, &[project.text()], &[]);
    // The next epoch takes the row over.
    let usage = project.write("more.ndjson", &lines(&[kwh("b", "m2", "2026-10-03T10:00:00Z", "10")]));
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--to", "2026-10-01"]);
    let output = ratemill(&["explain", "charge", id, "-C", project.text()], &[]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(stdout.contains("amount: stored 8.000000000000000001, rated again 8"), "{stdout}");
    assert!(stderr.contains("has 8.000000000000000001") && stderr.contains("rated again it is 8"), "{stderr}");
}

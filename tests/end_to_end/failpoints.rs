//! The process dies at every step of capture and of an epoch, each in a run of its own: the books come out the same.

use std::collections::BTreeSet;
use std::sync::Mutex;

use serde_json::Value;

use crate::engine::{ok, ratemill, report, sql};
use crate::project::{Project, RULE, kwh, lines};
use crate::scenario::{Run, Scenario, manifests};

/// Charges with their ids and revisions.
const CHARGES: &str = "SELECT charge_id, revision, rule, window_start, customer_id, amount, class, reverses, posting_period FROM charges
    WHERE window_end <= '2040-11-01T00:00:00Z' ORDER BY 1";

#[test]
fn the_books_are_the_same_wherever_the_process_dies() {
    let runs: usize = std::env::var("RATEMILL_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(10);
    let list = ratemill(&[], &[("RATEMILL_FAIL_AT".to_owned(), "list".to_owned())]);
    let points: Vec<String> = String::from_utf8(list.stdout).unwrap().lines().map(str::to_owned).collect();
    assert!(points.len() > 30, "a program with debug assertions has failpoints, and the tests are for such a one: {points:?}");

    let scenario = Scenario::load("electricity");
    let clean = scenario.project("", "");
    assert_eq!(Run::new(&clean, &[]).play(&scenario), 0);
    scenario.assert_books(&clean, "without a fault");
    let (of_clean, charges) = (manifests(&clean), sql(clean.path(), CHARGES));

    // The first time that a step is come to, and in the long suite later ones.
    let hits = (runs / 10).clamp(1, 8);
    let work: Mutex<Vec<(String, usize)>> =
        Mutex::new(points.iter().rev().flat_map(|point| (1..=hits).map(|hit| (point.clone(), hit))).collect());
    let (never, same): (Mutex<Vec<String>>, Mutex<BTreeSet<String>>) = Default::default();
    let worker = || {
        loop {
            let Some((point, hit)) = work.lock().unwrap().pop() else { return };
            let what = format!("{point}:{hit}");
            let project = scenario.project("", "");
            let deaths = Run::new(&project, &[("RATEMILL_FAIL_AT", what.clone())]).play(&scenario);
            if deaths == 0 && hit == 1 {
                never.lock().unwrap().push(point.clone());
            }
            scenario.assert_books(&project, &what);
            assert_eq!(of_rejected(&project), of_rejected(&clean), "{what}");
            if manifests(&project) == of_clean {
                assert_eq!(sql(project.path(), CHARGES), charges, "{what}");
                same.lock().unwrap().insert(what);
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    let (never, same) = (never.into_inner().unwrap(), same.into_inner().unwrap());
    assert!(never.is_empty(), "the scenario never comes to {never:?}");
    // Once a manifest is written, a retry is the same epoch.
    for point in points.iter().filter(|point| point.starts_with("epoch.") && *point != "epoch.planned") {
        assert!(same.contains(&format!("{point}:1")), "another run after {point}");
    }
    report(&format!(
        "failpoints: {} steps, {} runs of which {} with equal manifests and charge ids, 0 lost, 0 doubled",
        points.len(),
        points.len() * hits,
        same.len()
    ));
}

fn of_rejected(project: &Project) -> Vec<String> {
    sql(project.path(), "SELECT reason, id FROM rejected ORDER BY 1, 2")
}

#[test]
fn a_scenario_says_what_it_does() {
    let ids: Vec<Value> = Scenario::load("calls").parts[2].events.iter().map(|event| event["id"].clone()).collect();
    assert_eq!(ids, ["c6", "v1", "v2", "c5"]);
}

#[test]
fn the_books_are_the_same_wherever_an_epoch_is_stopped() {
    let runs: usize = std::env::var("RATEMILL_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(10);
    let list = ratemill(&[], &[("RATEMILL_FAIL_AT".to_owned(), "list".to_owned())]);
    let points = String::from_utf8(list.stdout).unwrap();
    let points = points.lines().filter(|point| point.starts_with("epoch.") || point.starts_with("dedup."));
    let scenario = Scenario::load("electricity");
    let hits = (runs / 5).clamp(2, 8);
    let work: Mutex<Vec<String>> = Mutex::new(points.flat_map(|point| (1..=hits).map(move |hit| format!("{point}:{hit}"))).collect());
    let stopped = Mutex::new(BTreeSet::new());
    let worker = || {
        loop {
            let Some(what) = work.lock().unwrap().pop() else { return };
            let project = scenario.project("", "");
            if Run::new(&project, &[]).stopped_at(&what).play(&scenario) > 0 {
                stopped.lock().unwrap().insert(what.clone());
            }
            scenario.assert_books(&project, &what);
        }
    };
    std::thread::scope(|scope| {
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    let stopped = stopped.into_inner().unwrap();
    assert!(stopped.contains("epoch.completed:1") && stopped.contains("dedup.file-written:1"), "{stopped:?}");
    report(&format!("stopped in an epoch: {} runs, 0 lost, 0 doubled", stopped.len()));
}

#[test]
fn what_only_the_second_attempt_can_rate_is_charged_by_the_next_epoch() {
    let project = Project::new("");
    project.write(
        "rules/tax.sql",
        "CREATE MATERIALIZED VIEW tax WITH (window = 'month', grace = '1 day', effective_from = '2026-09-01') AS
         SELECT e.customer_id, 'Tax' AS item, sum(e.amount) * 0.2 AS amount, e.currency FROM energy e GROUP BY e.customer_id, e.currency",
    );
    let usage = project.write("usage.ndjson", &lines(&[kwh("a", "m1", "2026-09-02T00:00:00Z", "10")]));
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    let owed = || sql(project.path(), "SELECT rule, sum(amount) FROM charges GROUP BY 1 ORDER BY 1");
    assert_eq!(owed(), ["energy,8", "tax,1.6"]);
    // Late usage is rated by the version that published its month, which cannot be read, and another rule charges its first.
    project.write("rules/energy.sql", &format!("{RULE} -- the same"));
    project.write("rules/other.sql", &RULE.replace("VIEW energy", "VIEW other").replace("u.meter = 'kwh'", "u.meter = 'other'"));
    let versions = std::fs::read_dir(project.path().join("lake/rules")).unwrap().map(|entry| entry.unwrap().path());
    let version = versions.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("energy-")).last().unwrap();
    let away = version.with_extension("away");
    std::fs::rename(&version, &away).unwrap();
    let mut other = kwh("b", "m1", "2026-09-02T00:00:00Z", "10");
    other["type"] = Value::from("other");
    let usage = project.write("usage.ndjson", &lines(&[kwh("late", "m1", "2026-09-03T00:00:00Z", "10"), other]));
    let arguments = ["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"];
    let died = ratemill(&arguments, &[("RATEMILL_FAIL_AT".to_owned(), "epoch.charges-appended".to_owned())]);
    assert!(!died.status.success());
    // The same epoch again: its charges are written, and now everything can be rated.
    std::fs::rename(&away, &version).unwrap();
    ok(&arguments);
    assert_eq!(owed(), ["energy,11", "other,8", "tax,2.2"]);
    ok(&["audit", "-C", project.text()]);
}

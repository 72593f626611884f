//! Pending changes: shown to the last digit, posted only by `ratemill apply`, and then as they were shown; rules and prices
//! that a running engine reads again.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::batch::net;
use crate::engine::{Engine, binary, ok, ratemill, sql, try_request, wait};
use crate::periods::{from_june, rate};
use crate::project::{PERIOD_RULE, Project, RULE, kwh, september};
use crate::running::running;

/// Whether an epoch is complete, before which there is nothing to ask.
fn is_begun(folder: &std::path::Path) -> bool {
    let names = std::fs::read_dir(folder.join("lake/epochs")).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().ends_with(".done.json"))
}

fn prices(project: &Project, unit_price: &str) {
    project.write("reference/prices.csv", &format!("plan,up_to,unit_price,flat_fee\nhome,,{unit_price},0\n"));
}

fn pending(project: &Project, more: &[&str]) -> Value {
    serde_json::from_str(&ok(&[&["pending", "-C", project.text(), "--format", "json"], more].concat())).unwrap()
}

fn apply(project: &Project, more: &[&str]) -> Value {
    serde_json::from_str(&ok(&[&["apply", "-C", project.text(), "--format", "json"], more].concat())).unwrap()
}

/// Exit code and what was said.
fn said(arguments: &[&str]) -> (i32, String) {
    let output = ratemill(arguments, &[]);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Each as `customer charged would_be difference`.
fn amounts(changes: &Value) -> Vec<String> {
    let text = |change: &Value, name: &str| change[name].as_str().unwrap_or_default().to_owned();
    let changes = changes.as_array().unwrap().iter();
    changes.map(|change| ["customer_id", "charged", "would_be", "difference"].map(|name| text(change, name)).join(" ")).collect()
}

fn rows(project: &Project) -> String {
    sql(project.path(), "SELECT count(*) FROM charges")[0].clone()
}

/// As after a crash between the manifest and the completion record.
fn lose_last_record(project: &Project) {
    let mut records: Vec<PathBuf> =
        std::fs::read_dir(project.path().join("lake/epochs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    records.sort();
    let last = records.iter().rev().find(|path| path.to_string_lossy().ends_with(".done.json")).unwrap();
    std::fs::remove_file(last).unwrap();
}

const JUNE: [&str; 2] = ["--to", "2026-07-01"];

#[test]
fn a_changed_price_is_shown_and_posted_only_when_it_is_applied() {
    let project = from_june("");
    rate(&project, "june.ndjson", &[kwh("a", "m1", "2026-06-02T00:00:00Z", "10"), kwh("b", "m2", "2026-06-02T00:00:00Z", "1")], &JUNE);
    let none = pending(&project, &[]);
    assert_eq!((&none["windows"], &none["digest"]), (&json!([]), &json!("")));
    prices(&project, "0.50");
    let shown = pending(&project, &[]);
    assert_eq!(amounts(&shown["customers"]), ["cust-1 8 5 -3", "cust-2 5.3 0.5 -4.8"]);
    assert_eq!(amounts(&shown["totals"]), [" 13.3 5.5 -7.8"]);
    let window = &shown["windows"][0];
    assert_eq!((&window["cause"], &window["tables"], &window["rows"]), (&json!("reference data changed"), &json!(["prices"]), &json!(4)));
    assert_eq!((&window["window_start"], shown["windows"].as_array().unwrap().len()), (&json!("2026-06-01T00:00:00Z"), 1));
    let text = ok(&["pending", "-C", project.text()]);
    assert!(text.contains("  cust-1: charged 8 EUR, would be 5 EUR, difference -3 EUR\n"), "{text}");
    let digest = shown["digest"].as_str().unwrap();
    assert!(text.contains(&format!("ratemill apply --digest {digest}")), "{text}");
    assert_eq!(rows(&project), "2");

    // Late usage is rated with the price that the window was published with; then the difference is another.
    rate(&project, "late.ndjson", &[kwh("c", "m1", "2026-06-03T00:00:00Z", "1")], &JUNE);
    assert_eq!(net(&project)[0], "cust-1,Energy,2026-06,EUR,11,8.3");
    let (code, stderr) = said(&["apply", "-C", project.text(), "--digest", digest]);
    assert!(code == 4 && stderr.contains("look at `ratemill pending` again"), "{code} {stderr}");
    assert_eq!(rows(&project), "4");
    let shown = pending(&project, &[]);
    assert_eq!(amounts(&shown["totals"]), [" 13.6 6 -7.6"]);
    let posted = apply(&project, &["--digest", shown["digest"].as_str().unwrap()]);
    assert_eq!((amounts(&posted["totals"]), &posted["rows_posted"]), (amounts(&shown["totals"]), &json!(4)));
    assert_eq!(net(&project), ["cust-1,Energy,2026-06,EUR,11,5.5", "cust-2,Energy,2026-06,EUR,1,0.5"]);
    let causes = "SELECT DISTINCT class, cause FROM charges WHERE epoch = (SELECT max(epoch) FROM charges)";
    assert_eq!(sql(project.path(), causes), ["correction,reference data changed"]);
    assert_eq!(sql(project.path(), "SELECT sum(billed) FROM invoice_lines"), ["6"]);
    ok(&["audit", "-C", project.text()]);

    // Nothing is left of it, and late usage is rated with the new price from now on.
    assert_eq!(apply(&project, &[])["posted_epoch"], json!(null));
    assert_eq!(rows(&project), "8");
    rate(&project, "later.ndjson", &[kwh("d", "m1", "2026-06-04T00:00:00Z", "1")], &JUNE);
    assert_eq!(net(&project)[0], "cust-1,Energy,2026-06,EUR,12,6");
    ok(&["audit", "-C", project.text()]);
}

#[test]
fn what_changes_no_charge_is_not_listed_and_writes_nothing() {
    let project = from_june("");
    project.write("reference/prices.csv", "plan,up_to,unit_price,flat_fee\nhome,,1,0\nsolar,,2,0\n");
    let usage = [kwh("a", "m1", "2026-06-02T00:00:00Z", "10"), kwh("b", "m3", "2026-06-02T00:00:00Z", "10")];
    rate(&project, "june.ndjson", &usage, &JUNE);
    let before = rows(&project);
    // A table that no rule reads: no window is rated for it.
    project.write("reference/labels.toml", "[columns]\nname = \"text\"\n");
    project.write("reference/labels.csv", "name\nx\n");
    let shown = pending(&project, &[]);
    assert_eq!((&shown["windows"], &shown["unchanged"], &shown["untouched"]), (&json!([]), &json!(0), &json!(1)));
    // A comment in a rule, and a contract without usage.
    let rule = std::fs::read_to_string(project.path().join("rules/energy.sql")).unwrap();
    project.write("rules/energy.sql", &format!("{rule}-- by the kilowatt-hour\n"));
    let contracts = std::fs::read_to_string(project.path().join("reference/contracts.csv")).unwrap();
    project.write("reference/contracts.csv", &format!("{contracts}m99,cust-99,home,EUR,2026-01-01,\n"));
    let shown = pending(&project, &[]);
    assert_eq!((&shown["windows"], &shown["unchanged"], &shown["untouched"]), (&json!([]), &json!(1), &json!(0)));
    let posted = apply(&project, &[]);
    assert_eq!((&posted["rows_posted"], posted["posted_epoch"].is_null()), (&json!(0), false));
    assert_eq!(rows(&project), before);
    // The windows go on with the present versions all the same: the new contract's late usage is charged.
    rate(&project, "late.ndjson", &[kwh("c", "m99", "2026-06-03T00:00:00Z", "1")], &JUNE);
    assert_eq!(net(&project).last().unwrap(), "cust-99,Energy,2026-06,EUR,1,1");
    assert_eq!(pending(&project, &[])["unchanged"], json!(0));
    // One customer's contract: nobody else's.
    project.write("reference/contracts.csv", &contracts.replace("m3,cust-3,home", "m3,cust-3,solar"));
    let shown = pending(&project, &[]);
    assert_eq!(amounts(&shown["customers"]), ["cust-3 10 20 10", "cust-99 1 0 -1"]);
    project.write(
        "reference/contracts.csv",
        &format!("{}m99,cust-99,home,EUR,2026-01-01,\n", contracts.replace("m3,cust-3,home", "m3,cust-3,solar")),
    );
    assert_eq!(amounts(&pending(&project, &[])["customers"]), ["cust-3 10 20 10"]);
    assert_eq!(apply(&project, &["--rule", "energy"])["rows_posted"], json!(2));
    ok(&["audit", "-C", project.text()]);
    // Another contract from July on: June is not even rated for it.
    let contracts = std::fs::read_to_string(project.path().join("reference/contracts.csv")).unwrap();
    let moved =
        contracts.replace("m3,cust-3,solar,EUR,2026-01-01,", "m3,cust-3,solar,EUR,2026-01-01,2026-07-01\nm3,cust-4,home,EUR,2026-07-01,");
    project.write("reference/contracts.csv", &moved);
    let shown = pending(&project, &[]);
    assert_eq!((&shown["windows"], &shown["unchanged"], &shown["untouched"]), (&json!([]), &json!(0), &json!(1)));
    let (code, stderr) = said(&["pending", "-C", project.text(), "--rule", "enrgy"]);
    assert!(code == 2 && stderr.contains("did you mean `energy`"), "{stderr}");
}

/// Energy by the day, and two rules that read it.
fn with_readers(price: &str) -> Project {
    let project = Project::new("");
    prices(&project, price);
    let daily = RULE.replace("window = 'month'", "window = 'day'").replace("grace = '1 day', ", "").replace("2026-09-01", "2026-06-01");
    project.write("rules/energy.sql", &daily);
    let month = |name: &str, options: &str, query: &str| {
        let text = format!("CREATE MATERIALIZED VIEW {name} WITH (window = 'month', effective_from = '2026-06-01'{options}) AS {query}");
        project.write(&format!("rules/{name}.sql"), &text);
    };
    let vat =
        "SELECT e.customer_id, 'VAT' AS item, sum(e.amount) * 0.2 AS amount, e.currency FROM energy e GROUP BY e.customer_id, e.currency";
    month("vat", "", vat);
    let true_up = "SELECT e.customer_id, 'True-up' AS item, 1000 - sum(e.amount) AS amount, e.currency FROM earlier.energy e GROUP BY e.customer_id, e.currency";
    month("true_up", ", history = '2 windows'", true_up);
    // What is carried on from month to month, by the rule itself.
    let balance = "SELECT x.customer_id, 'Balance' AS item, sum(x.amount) AS amount, x.currency FROM (
        SELECT e.customer_id, e.amount, e.currency FROM energy e UNION ALL SELECT b.customer_id, b.amount, b.currency FROM earlier.balance b) x
        GROUP BY x.customer_id, x.currency";
    month("balance", ", history = '1 window'", balance);
    let usage = [
        kwh("a", "m1", "2026-06-10T00:00:00Z", "100"),
        kwh("b", "m1", "2026-07-10T00:00:00Z", "100"),
        kwh("c", "m1", "2026-09-01T12:00:00Z", "0"),
    ];
    rate(&project, "usage.ndjson", &usage, &[]);
    project
}

const OWED: &str = "SELECT rule, window_start, sum(amount) FROM charges GROUP BY 1, 2 HAVING sum(amount) <> 0 ORDER BY 1, 2";

#[test]
fn rules_that_read_changed_charges_go_along() {
    let project = with_readers("1");
    prices(&project, "2");
    // Of one day, what reads it: the months around and after.
    let one_day = ["--rule", "energy", "--from", "2026-06-10", "--to", "2026-06-11"];
    let shown = pending(&project, &one_day);
    let causes: Vec<String> = shown["windows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|window| format!("{} {}", window["rule"].as_str().unwrap(), window["cause"].as_str().unwrap()))
        .collect();
    assert_eq!(causes.iter().filter(|cause| *cause == "energy reference data changed").count(), 1, "{causes:?}");
    assert!(
        causes.contains(&"vat charges read changed".to_owned()) && causes.contains(&"balance charges read changed".to_owned()),
        "{causes:?}"
    );
    apply(&project, &[&one_day[..], &["--digest", shown["digest"].as_str().unwrap()]].concat());
    ok(&["audit", "-C", project.text()]);
    let of = |rule: &str| -> Vec<String> { sql(project.path(), OWED).into_iter().filter(|line| line.starts_with(rule)).collect() };
    assert_eq!(of("vat"), ["vat,2026-06-01T00:00:00Z,40", "vat,2026-07-01T00:00:00Z,20"]);
    assert_eq!(of("balance"), ["balance,2026-06-01T00:00:00Z,200", "balance,2026-07-01T00:00:00Z,300", "balance,2026-08-01T00:00:00Z,300"]);
    // All of it: as if the price had been that from the beginning.
    apply(&project, &[]);
    ok(&["audit", "-C", project.text()]);
    let fresh = with_readers("2");
    assert_eq!(sql(project.path(), OWED), sql(fresh.path(), OWED));
    assert_eq!(apply(&project, &[])["rows_posted"], json!(0));
    // Another text of the rule that is read is another version of its readers, too.
    let rule = std::fs::read_to_string(project.path().join("rules/energy.sql")).unwrap();
    project.write("rules/energy.sql", &rule.replace("graduated(sum(u.quantity), p.tiers)", "graduated(sum(u.quantity), p.tiers) * 2"));
    let shown = pending(&project, &["--rule", "energy"]);
    assert!(shown["windows"].as_array().unwrap().iter().any(|window| window["rule"] == "vat" && window["cause"] == "charges read changed"));
    apply(&project, &[]);
    ok(&["audit", "-C", project.text()]);
    assert_eq!(of("vat"), ["vat,2026-06-01T00:00:00Z,80", "vat,2026-07-01T00:00:00Z,80"]);
}

#[test]
fn a_contract_that_moves_takes_its_period_along() {
    let project = Project::new("");
    project.contracts("m1,a,k1,home,EUR,1,2026-01-01,\nm2,a,k1,home,EUR,1,2026-01-01,\nm3,c,k3,home,EUR,1,2026-01-01,\n");
    project.write("rules/energy.sql", PERIOD_RULE);
    let usage = [
        kwh("a", "m1", "2026-01-10T00:00:00Z", "100"),
        kwh("b", "m1", "2026-01-20T00:00:00Z", "50"),
        kwh("c", "m2", "2026-01-20T00:00:00Z", "3"),
        kwh("d", "m3", "2026-01-20T00:00:00Z", "7"),
        kwh("e", "m2", "2026-02-01T00:00:00Z", "0"),
    ];
    rate(&project, "usage.ndjson", &usage, &[]);
    // m1 went to another contract on the 15th: its new period waits, since the published one has its usage.
    project.contracts(
        "m1,a,k1,home,EUR,1,2026-01-01,2026-01-15\nm2,a,k1,home,EUR,1,2026-01-01,\nm3,c,k3,home,EUR,1,2026-01-01,\nm1,b,k2,home,EUR,1,2026-01-15,\n",
    );
    let shown = pending(&project, &[]);
    assert_eq!(amounts(&shown["customers"]), ["a 153 103 -50", "b 0 50 50"]);
    assert_eq!(amounts(&shown["totals"]), [" 153 153 0"]);
    // The new contract's part alone would charge that usage twice.
    let part = pending(&project, &["--from", "2026-01-15"]);
    assert!(part["windows"] == json!([]) && part["held"].as_array().unwrap().len() == 1, "{part}");
    apply(&project, &["--digest", shown["digest"].as_str().unwrap()]);
    let owed = "SELECT customer_id, contract_id, sum(amount) FROM charges GROUP BY 1, 2 HAVING sum(amount) <> 0 ORDER BY 1, 2";
    assert_eq!(sql(project.path(), owed), ["a,k1,103", "b,k2,50", "c,k3,7"]);
    ok(&["audit", "-C", project.text()]);
    assert_eq!(apply(&project, &[])["rows_posted"], json!(0));
}

#[test]
fn closed_months_are_corrected_in_the_open_one_once_however_often_it_is_killed() {
    let project = from_june("");
    let daily = RULE.replace("window = 'month'", "window = 'day'").replace("2026-09-01", "2026-06-01");
    project.write("rules/energy.sql", &daily);
    prices(&project, "1");
    let events: Vec<Value> =
        (0..200).map(|n| kwh(&format!("e{n}"), &format!("m{}", n % 10), &format!("2026-06-{:02}T10:00:00Z", n % 28 + 1), "1.5")).collect();
    rate(&project, "june.ndjson", &events, &JUNE);
    let charged: usize = rows(&project).parse().unwrap();
    ok(&["period", "close", "2026-06", "-C", project.text()]);

    // Killed after the manifest, and before the completion record: the next command finishes it, once.
    prices(&project, "2");
    apply(&project, &[]);
    lose_last_record(&project);
    let again = apply(&project, &[]);
    assert_eq!(again["rows_posted"], json!(0), "what was interrupted is finished first");
    assert_eq!(rows(&project).parse::<usize>().unwrap(), charged * 3);
    let posted = "SELECT DISTINCT billing_period, posting_period, cause FROM charges WHERE class = 'correction'";
    assert_eq!(sql(project.path(), posted), ["2026-06,2026-07,reference data changed"]);

    // Killed at any moment.
    let begun = Instant::now();
    prices(&project, "3");
    apply(&project, &[]);
    let whole = begun.elapsed();
    for (run, price) in ["4", "5", "6", "7", "8", "9"].into_iter().enumerate() {
        prices(&project, price);
        let mut child = Command::new(binary())
            .args(["apply", "-C", project.text()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(0.3 + 0.12 * run as f64));
        let _ = child.kill();
        child.wait().unwrap();
        apply(&project, &[]);
        assert_eq!(sql(project.path(), "SELECT sum(amount) FROM charges"), [(300 * price.parse::<i64>().unwrap()).to_string()]);
    }
    // Each price took each charge back once and charged it once.
    assert_eq!(rows(&project).parse::<usize>().unwrap(), charged * (1 + 2 * 8));
    ok(&["audit", "-C", project.text()]);
}

#[test]
fn what_cannot_be_rated_is_named_and_nothing_is_posted() {
    let project = from_june("");
    rate(&project, "june.ndjson", &[kwh("a", "m1", "2026-06-02T00:00:00Z", "10"), kwh("b", "m2", "2026-06-02T00:00:00Z", "0")], &JUNE);
    project.write(
        "rules/energy.sql",
        &RULE.replace("2026-09-01", "2026-06-01").replace("graduated(sum(u.quantity), p.tiers)", "1 / sum(u.quantity)"),
    );
    for command in ["pending", "apply"] {
        let (code, stderr) = said(&[command, "-C", project.text()]);
        assert!(code == 3 && stderr.contains("rule `energy`, window 2026-06-01T00:00:00Z"), "{command}: {code} {stderr}");
    }
    assert_eq!(rows(&project), "2");
}

#[test]
fn a_running_engine_reads_rules_and_prices_again_and_misses_no_event() {
    for fold in [true, false] {
        let project = Project::new(&format!("[epoch]\ninterval = \"100 milliseconds\"\nfold = {fold}\n[http]\nlisten = \"127.0.0.1:0\"\n"));
        prices(&project, "1");
        let open = RULE.replace("1 day", "3650 days");
        project.write("rules/energy.sql", &open);
        // Depends on no price: its folded windows are kept.
        project.write(
            "rules/counted.sql",
            "CREATE MATERIALIZED VIEW counted WITH (window = 'month', grace = '3650 days', effective_from = '2026-09-01') AS
             SELECT c.customer_id, 'Count' AS item, count(*) * 1.0 AS amount, c.currency FROM usage u
             JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject WHERE u.meter = 'kwh' GROUP BY c.customer_id, c.currency",
        );
        let daily = RULE.replace("window = 'month'", "window = 'day'").replace("VIEW energy", "VIEW daily").replace("'Energy'", "'Daily'");
        project.write("rules/daily.sql", &daily);
        let engine = Engine::start(project.path());
        engine.send(&[kwh("first", "m1", "2026-09-01T10:00:00Z", "1"), kwh("mark", "m0", "2026-09-10T00:00:00Z", "0")]);
        let daily_owed = || sql(project.path(), "SELECT sum(amount) FROM charges WHERE rule = 'daily' AND customer_id = 'cust-1'");
        wait("a day is published", || is_begun(project.path()) && daily_owed() == ["1"]);

        let stop = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Acquire) {
                    engine.send(&[kwh(&format!("e{sent}"), "m1", "2026-09-20T10:00:00Z", "1")]);
                    sent += 1;
                }
                sent
            });
            let reload =
                |body: &[u8]| try_request(&engine.address, "POST", "/v1/reload", &[("content-type", "application/json")], body).unwrap();
            // Nothing is different, then something is wrong: the engine goes on with what it has.
            let (status, body) = reload(b"{}");
            assert!(status == 200 && body.contains("\"rules\":[],\"tables\":[]"), "{body}");
            project.write("rules/energy.sql", &open.replace("sum(u.quantity)", "sum(u.quantty)"));
            let (status, body) = reload(b"{}");
            assert!(status == 422 && body.contains("quantty"), "{status} {body}");
            let (code, stderr) = said(&["reload", "-C", project.text()]);
            assert!(code == 3 && stderr.contains("quantty"), "{code} {stderr}");
            std::fs::rename(project.path().join("rules/daily.sql"), project.path().join("rules/daily.txt")).unwrap();
            project.write("rules/energy.sql", &open);
            let (status, body) = reload(b"{}");
            assert!(status == 422 && body.contains("its file is gone"), "{status} {body}");
            std::fs::rename(project.path().join("rules/daily.txt"), project.path().join("rules/daily.sql")).unwrap();
            assert_eq!(running(&engine, "?rule=energy&customer_id=cust-1").len(), 1);
            // Not as a form of another site could send it.
            assert_eq!(try_request(&engine.address, "POST", "/v1/reload", &[("content-type", "text/plain")], b"{}").unwrap().0, 415);

            // A new price by signal, a new rule by command.
            prices(&project, "2");
            engine.hang_up();
            let per_unit = || {
                let row = running(&engine, "?rule=energy&customer_id=cust-1").pop().unwrap();
                let number = |name: &str| row[name].as_str().unwrap().parse::<u64>().unwrap();
                number("amount") / number("quantity")
            };
            wait("the price is in force for open windows", || per_unit() == 2);
            assert_eq!(engine.get("/v1/running-charges?rule=tax").0, 404);
            project.write(
                "rules/tax.sql",
                "CREATE MATERIALIZED VIEW tax WITH (window = 'month', grace = '3650 days', effective_from = '2026-09-01') AS
                 SELECT e.customer_id, 'Tax' AS item, sum(e.amount) AS amount, e.currency FROM energy e GROUP BY e.customer_id, e.currency",
            );
            let told = ok(&["reload", "-C", project.text()]);
            assert_eq!(told, "reloaded; rules: tax\n");
            assert_eq!(engine.get("/v1/running-charges?rule=tax").0, 200);
            stop.store(true, Ordering::Release);
            sender.join().unwrap()
        });
        let total = (sent + 1).to_string();
        let now = |rule: &str, column: &str| running(&engine, &format!("?rule={rule}&customer_id=cust-1"))[0][column].clone();
        assert_eq!(now("energy", "quantity"), json!(total));
        assert_eq!(now("energy", "amount"), json!(((sent + 1) * 2).to_string()));
        assert_eq!(now("counted", "amount"), json!(total));
        let log = std::fs::read_to_string(project.path().join("engine.stderr")).unwrap();
        let kept = !log.lines().any(|line| line.contains("are reloaded") && line.contains("folded_again") && line.contains("\"counted\""));
        assert!(kept, "the state of a rule that reads no price is kept:\n{log}");
        wait("all usage is stored", || sql(project.path(), "SELECT count(*) FROM usage") == [(sent + 2).to_string()]);

        // The published day is charged as it was, until the engine is told to post the difference.
        assert_eq!(daily_owed(), ["1"]);
        let shown = pending(&project, &[]);
        assert!(amounts(&shown["customers"]).contains(&"cust-1 1 2 1".to_owned()), "{shown}");
        // Another price that the engine has not read: nobody saw what it would post.
        prices(&project, "3");
        let (code, stderr) = said(&["apply", "-C", project.text()]);
        assert!(code == 1 && stderr.contains("ratemill reload"), "{code} {stderr}");
        prices(&project, "2");
        let (code, _) = said(&["apply", "-C", project.text(), "--digest", "0000000000000000"]);
        assert_eq!(code, 4);
        let posted = apply(&project, &["--digest", shown["digest"].as_str().unwrap()]);
        assert_eq!(posted["rows_posted"], json!(2), "{posted}");
        assert_eq!(daily_owed(), ["2"]);
        // Late usage of the day, sent now, is rated with the new price.
        engine.send(&[kwh("late", "m1", "2026-09-01T11:00:00Z", "1")]);
        wait("the late usage is charged", || daily_owed() == ["4"]);
        ok(&["audit", "-C", project.text()]);
        let toml = std::fs::read_to_string(project.path().join("ratemill.toml")).unwrap();
        project.write("ratemill.toml", &format!("{toml}\n[billing]\ntimezone = \"Europe/London\"\n"));
        let (code, stderr) = said(&["reload", "-C", project.text()]);
        assert!(code == 0 && stderr.contains("ratemill.toml was changed"), "{stderr}");
        project.write("ratemill.toml", &toml);
        engine.stop();
        // A start finds what the reload left.
        let engine = Engine::start(project.path());
        assert_eq!(running(&engine, "?rule=energy&customer_id=cust-1")[0]["quantity"], json!((sent + 2).to_string()));
        engine.kill();
    }
}

#[test]
fn only_a_key_that_may_operate_does() {
    let hash = |key: &str| hex::encode(Sha256::digest(key));
    let project = Project::new(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[[http.keys]]\nname = \"meter\"\nsha256 = \"{}\"\n[[http.keys]]\nname = \"office\"\nsha256 = \"{}\"\noperate = true\n",
        hash("meter"),
        hash("office")
    ));
    let engine = Engine::start(project.path());
    for path in ["/v1/reload", "/v1/apply"] {
        let ask = |key: &str| {
            let key = format!("Bearer {key}");
            try_request(&engine.address, "POST", path, &[("content-type", "application/json"), ("authorization", &key)], b"{}").unwrap()
        };
        assert_eq!((ask("meter").0, ask("nobody").0), (403, 401), "{path}");
        let (status, body) = ask("office");
        assert_eq!(status, 200, "{path} {body}");
    }
    let with = |key: &str| ratemill(&["reload", "-C", project.text()], &[("RATEMILL_KEY".to_owned(), key.to_owned())]).status.code();
    assert_eq!((with("meter"), with("office")), (Some(2), Some(0)));
    engine.kill();
}

#[test]
fn an_engine_without_a_listener_holds_the_lake() {
    let project = from_june("[[files]]\nname = \"drop\"\nurl = \"drop\"\n");
    rate(&project, "june.ndjson", &september(3), &[]);
    let mut child = Command::new(binary())
        .args(["run", "-C", project.text()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait("the engine has the lake", || {
        let status: Value = serde_json::from_str(&ok(&["status", "-C", project.text(), "--format", "json"])).unwrap();
        status["owner"]["pid"] == json!(child.id())
    });
    for command in ["apply", "reload"] {
        let (code, stderr) = said(&[command, "-C", project.text()]);
        assert_eq!(code, if command == "apply" { 5 } else { 1 }, "{stderr}");
        assert!(stderr.contains(if command == "apply" { "--engine URL" } else { "no engine with an HTTP listener" }), "{stderr}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn contracts_that_change_while_the_engine_runs_lose_no_usage() {
    let project = Project::new("[epoch]\ninterval = \"100 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    project.contracts("m1,cust-1,k1,home,EUR,1,2026-09-01,\n");
    let rule = PERIOD_RULE.replace("effective_from = '2026-01-01'", "grace = '3650 days', effective_from = '2026-09-01'");
    project.write("rules/energy.sql", &rule);
    let engine = Engine::start(project.path());
    engine.send(&[kwh("a", "m1", "2026-09-03T10:00:00Z", "1"), kwh("b", "m2", "2026-09-04T10:00:00Z", "10")]);
    wait("the usage is folded", || sql_or_none(&project, "SELECT count(*) FROM usage") == ["2"]);
    // The period is cut anew, and the second subject has a contract after all.
    project.contracts("m1,cust-1,k1,home,EUR,2,2026-09-01,\nm2,cust-2,k2,home,EUR,3,2026-09-01,\n");
    ok(&["reload", "-C", project.text()]);
    engine.send(&[kwh("c", "m1", "2026-09-05T10:00:00Z", "2"), kwh("d", "m2", "2026-09-05T10:00:00Z", "20")]);
    wait("the later usage is folded", || sql(project.path(), "SELECT count(*) FROM usage") == ["4"]);
    let mut owed: Vec<String> = running(&engine, "").iter().map(|row| format!("{} {}", row["customer_id"], row["amount"])).collect();
    owed.sort();
    assert_eq!(owed, ["\"cust-1\" \"3\"", "\"cust-2\" \"30\""]);
    engine.stop();
    ok(&["rate", "-C", project.text(), "--usage", project.write("none.ndjson", "").to_str().unwrap(), "--close"]);
    assert_eq!(sql(project.path(), "SELECT customer_id, sum(amount) FROM charges GROUP BY 1 ORDER BY 1"), ["cust-1,3", "cust-2,30"]);
}

/// A query that may be asked before the first epoch.
fn sql_or_none(project: &Project, query: &str) -> Vec<String> {
    let output = ratemill(&["sql", "-C", project.text(), "-c", query, "--format", "csv"], &[]);
    String::from_utf8(output.stdout).unwrap().lines().skip(1).map(str::to_owned).collect()
}

#[test]
fn contracts_that_go_and_come_back_before_the_next_epoch_lose_no_usage() {
    let project = Project::new("[epoch]\ninterval = \"100 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    let both = "m1,cust-1,k1,home,EUR,1,2026-06-01,\nm2,cust-2,k2,home,EUR,1,2026-06-01,\n";
    project.contracts(both);
    project
        .write("rules/energy.sql", &PERIOD_RULE.replace("effective_from = '2026-01-01'", "grace = '1 day', effective_from = '2026-06-01'"));
    let engine = Engine::start(project.path());
    engine.send(&[kwh("a", "m1", "2026-06-03T10:00:00Z", "5")]);
    wait("the usage is folded", || sql_or_none(&project, "SELECT count(*) FROM usage") == ["1"]);
    for contracts in ["m2,cust-2,k2,home,EUR,1,2026-06-01,\n", both] {
        project.contracts(contracts);
        ok(&["reload", "-C", project.text()]);
    }
    assert_eq!(
        running(&engine, "").iter().map(|row| format!("{} {}", row["customer_id"], row["amount"])).collect::<Vec<_>>(),
        ["\"cust-1\" \"5\""]
    );
    engine.send(&[kwh("mark", "m2", "2026-07-05T10:00:00Z", "0")]);
    wait("the first period is published", || {
        sql(project.path(), "SELECT customer_id, sum(amount) FROM charges GROUP BY 1") == ["cust-1,5"]
    });
    engine.stop();
}

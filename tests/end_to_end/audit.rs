//! `ratemill audit`: clean where the ledger is right, and what is wrong is found and named.

use serde_json::{Value, json};

use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::periods::{from_june, rate};
use crate::project::{Project, kwh, september};
use crate::servers::python;

/// Appends a copy of a charge with columns of it changed, as somebody with another program would.
const TAMPER: &str = r"
import sys, json, polars
table = sys.argv[1] + '/lake/charges'
row = polars.read_delta(table).head(1)
changes = {name: polars.lit(value) for name, value in json.loads(sys.argv[2]).items()}
typed = {name: value.str.to_datetime(time_unit='us', time_zone='UTC') if name.startswith('window_') else value for name, value in changes.items()}
row.with_columns(**{name: value.cast(row.schema[name]) for name, value in typed.items()}).write_delta(table, mode='append')
";

fn audit(project: &Project) -> (i32, Value) {
    let output = ratemill(&["audit", "-C", project.text(), "--format", "json"], &[]);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), report)
}

#[test]
fn a_right_ledger_is_clean_with_late_usage_new_prices_and_a_running_engine() {
    let project = from_june("[http]\nlisten = \"127.0.0.1:0\"\n");
    let empty = ratemill(&["audit", "-C", project.text()], &[]);
    assert!(String::from_utf8(empty.stderr).unwrap().contains("holds no completed epoch yet"));
    rate(&project, "usage.ndjson", &september(300), &["--to", "2026-10-01"]);
    let (code, report) = audit(&project);
    assert_eq!(code, 0, "{report}");
    // June, July and August had no usage and published nothing.
    assert_eq!(["windows", "charges", "sums", "differences"].map(|name| report[name].clone()), [1, 10, 10, 0].map(|n| json!(n)));
    // Other prices, and another rule text: each window is rated by the versions that published it.
    project.write("reference/prices.csv", "plan,up_to,unit_price,flat_fee\nhome,,0.50,0\n");
    let engine = Engine::start(project.path());
    engine.send(&[kwh("late", "m3", "2026-09-15T00:00:00Z", "7.5"), kwh("october", "m3", "2026-10-15T00:00:00Z", "7.5")]);
    wait("the correction is posted", || sql(project.path(), "SELECT count(*) FROM charges WHERE class = 'correction'") == ["2"]);
    for n in 0..5 {
        engine.send(&[kwh(&format!("more-{n}"), "m4", "2026-09-15T00:00:00Z", "1")]);
        let shown = ok(&["audit", "-C", project.text()]);
        assert!(shown.starts_with("the ledger is what ") && shown.lines().count() == 1, "{shown}");
    }
    // An event that is voided is rated no more, neither by the engine nor by the audit.
    let owed = || sql(project.path(), "SELECT sum(quantity) FROM charges WHERE customer_id = 'cust-3'");
    let before = owed();
    engine.send(&[json!({"specversion": "1.0", "source": "office", "id": "void", "type": "ratemill.void",
                         "data": {"target": {"source": "test", "id": "late"}}})]);
    wait("the void is charged", || owed() != before);
    engine.stop();
    assert_eq!(audit(&project).0, 0);
}

#[test]
fn a_wrong_row_is_found_and_named() {
    let wrong: [(Value, &str, &str); 4] = [
        // One charge twice.
        (json!({"charge_id": "x"}), "Energy", "energy"),
        (json!({"charge_id": "x", "amount": "1000.5", "item": "Surcharge"}), "Surcharge", "energy"),
        // A window that was never published, and a rule that is not there.
        (json!({"window_start": "2026-07-01T00:00:00+00:00", "window_end": "2026-08-01T00:00:00+00:00"}), "Energy", "energy"),
        (json!({"rule": "unknown"}), "Energy", "unknown"),
    ];
    for (change, item, rule) in wrong {
        let project = from_june("");
        rate(&project, "usage.ndjson", &[kwh("sent", "m1", "2026-06-03T00:00:00Z", "10")], &["--to", "2026-07-01"]);
        assert_eq!(audit(&project).0, 0);
        python(TAMPER, &[project.text(), &change.to_string()], &[]);
        // Before an epoch has taken the row over, and after that.
        for _ in 0..2 {
            let (code, report) = audit(&project);
            assert_eq!(code, 4, "{change}: {report}");
            let first = &report["first"];
            assert_eq!(first["rule"], rule, "{report}");
            assert_eq!(first["customer_id"], "cust-1", "{report}");
            assert_eq!(first["item"], item, "{report}");
            rate(&project, "more.ndjson", &[kwh("more", "m2", "2026-07-04T00:00:00Z", "1")], &[]);
        }
        let output = ratemill(&["audit", "-C", project.text()], &[]);
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(stdout.contains(&format!("rule `{rule}`")) && stdout.contains("rated afresh"), "{stdout}");
        assert!(stderr.contains("differs from a fresh rating"), "{stderr}");
    }
}

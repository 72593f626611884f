//! Upkeep: joined files, Delta checkpoints and removed files change nothing that anybody reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::batch::net;
use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::project::{Project, RULE, kwh, lines, september};
use crate::servers::python;

/// Sums and counts of usage and charges as three other programs read them, and whether each began with a checkpoint.
const READERS: &str = r"
import sys, deltalake, polars, duckdb
for table, column in [('usage', 'quantity'), ('charges', 'amount')]:
    path = f'{sys.argv[1]}/lake/{table}'
    delta = deltalake.DeltaTable(path)
    arrow = deltalake.QueryBuilder().register('t', delta).execute(f'SELECT sum({column}) AS s, count(*) AS n FROM t').read_all()
    print(table, 'delta', arrow['s'][0].as_py().normalize(), arrow['n'][0].as_py())
    total = polars.read_delta(path).select(polars.col(column).sum(), polars.len()).row(0)
    print(table, 'polars', total[0].normalize(), total[1])
    s, n = duckdb.execute(f'SELECT sum({column}), count(*) FROM read_parquet(?, hive_partitioning=true)', [delta.file_uris()]).fetchone()
    print(table, 'duckdb', s.normalize(), n)
";

/// Every row, with what the ledger has of it.
const ROWS: [&str; 3] = [
    "SELECT source, id, meter, subject, time, quantity, log_position FROM usage ORDER BY log_position",
    "SELECT charge_id, revision, customer_id, billing_period, posting_period, item, amount, quantity, class, reverses, epoch, usage_version FROM charges ORDER BY epoch, revision, charge_id",
    "SELECT customer_id, billing_period, amount, billed FROM invoice_totals ORDER BY 1, 2",
];

fn rows(project: &Project) -> Vec<Vec<String>> {
    ROWS.iter().map(|query| sql(project.path(), query)).collect()
}

fn read_by_others(project: &Project) -> String {
    python(READERS, &[project.text()], &[])
}

/// Parquet files under a folder, checkpoints left out.
fn parquet(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() && entry.file_name().is_some_and(|name| name != "_delta_log") {
            found.extend(parquet(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "parquet") {
            found.push(entry);
        }
    }
    found.sort();
    found
}

fn upkeep(project: &Project, more: &[&str]) -> Value {
    serde_json::from_str(&ok(&[&["upkeep", "-C", project.text(), "--format", "json"], more].concat())).unwrap()
}

fn table<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["tables"].as_array().unwrap().iter().find(|table| table["table"] == name).unwrap()
}

fn audit(project: &Project) {
    ok(&["audit", "-C", project.text()]);
}

/// Waits until there is something to read.
pub fn first_epoch(project: &Project) {
    let has_epoch = || ratemill(&["sql", "-C", project.text(), "-c", "SELECT 1"], &[]).status.success();
    wait("an epoch is completed", has_epoch);
}

/// Usage, sent in so many epochs.
fn in_epochs(project: &Project, events: &[Value], epochs: usize) {
    let engine = Engine::start(project.path());
    for (number, part) in events.chunks(events.len().div_ceil(epochs)).enumerate() {
        engine.send(part);
        first_epoch(project);
        let sent = (number + 1) * part.len();
        wait("the epoch is completed", || sql(project.path(), "SELECT count(*) FROM usage") == [sent.min(events.len()).to_string()]);
    }
    engine.stop();
}

/// September by day and by month, each published at once.
fn with_daily(toml: &str) -> Project {
    let project = Project::new(&format!("[epoch]\ninterval = \"50 milliseconds\"\n[http]\nlisten = \"127.0.0.1:0\"\n{toml}"));
    daily(&project);
    project
}

fn daily(project: &Project) {
    project.write("rules/daily.sql", &RULE.replace("1 day", "1 second").replace("'month'", "'day'").replace("VIEW energy", "VIEW daily"));
}

#[test]
fn joined_files_change_nothing_that_anybody_reads() {
    let project = with_daily("[upkeep]\nlive = false\nfiles = 2\ncheckpoint = 5\n");
    let events = september(240);
    in_epochs(&project, &events, 12);
    let (before, others) = (rows(&project), read_by_others(&project));
    let usage_files = parquet(&project.path().join("lake/usage"));
    assert!(usage_files.len() > 100, "{}", usage_files.len());
    assert!(!project.path().join("lake/usage/_delta_log/_last_checkpoint").exists());

    let planned = upkeep(&project, &["--dry-run"]);
    assert_eq!(parquet(&project.path().join("lake/usage")), usage_files);
    let done = upkeep(&project, &[]);
    for report in [&planned, &done] {
        // One file for each day of September.
        let usage = table(report, "usage");
        assert_eq!((usage["joined"].as_u64(), usage["compactions"].as_u64()), (Some(usage_files.len() as u64), Some(28)), "{report}");
        assert!(usage["checkpoint"].is_u64() && table(report, "charges")["compactions"].as_u64() > Some(0), "{report}");
    }
    assert_eq!(table(&done, "usage")["written"], 28);
    assert_eq!((&planned["dry_run"], &done["dry_run"]), (&json!(true), &json!(false)));
    assert_eq!(rows(&project), before);
    assert_eq!(read_by_others(&project), others);
    audit(&project);
    for name in ["usage", "charges"] {
        let log = project.path().join(format!("lake/{name}/_delta_log"));
        let hint: Value = serde_json::from_slice(&std::fs::read(log.join("_last_checkpoint")).unwrap()).unwrap();
        assert!(log.join(format!("{:020}.checkpoint.parquet", hint["version"].as_u64().unwrap())).exists());
    }
    // Once more: there is nothing to do, and nothing is removed within seven days.
    let again = upkeep(&project, &[]);
    for report in again["tables"].as_array().unwrap() {
        assert_eq!((&report["joined"], &report["removed"]), (&json!(0), &json!(0)), "{again}");
    }
    let kept = parquet(&project.path().join("lake/usage"));
    assert!(usage_files.iter().all(|file| kept.contains(file)));
    // The version that a charge was rated with can still be read.
    let then = "import sys, polars\nprint(polars.read_delta(sys.argv[1] + '/lake/usage', version=int(sys.argv[2])).height)";
    let versions = sql(project.path(), "SELECT usage_version, max(epoch) FROM charges GROUP BY usage_version ORDER BY 1");
    let first = versions[0].split(',').next().unwrap();
    let height: usize = python(then, &[project.text(), first], &[]).trim().parse().unwrap();
    assert!(0 < height && height < events.len(), "{height}");

    // Late usage, a void and usage that is known find everything where it is now.
    let engine = Engine::start(project.path());
    assert_eq!(engine.send(&events)["duplicates"], 240);
    let late = kwh("late", "m3", "2026-09-15T00:00:00Z", "7.5");
    let void = json!({"specversion": "1.0", "source": "office", "id": "void", "type": "ratemill.void",
                      "data": {"target": {"source": "test", "id": "e7"}}});
    engine.send(&[late.clone(), void.clone()]);
    wait("it is charged", || sql(project.path(), "SELECT count(DISTINCT cause) FROM charges WHERE class = 'correction'") == ["2"]);
    engine.stop();
    audit(&project);
    upkeep(&project, &[]);
    audit(&project);
    let whole = Project::new("");
    daily(&whole);
    let all: Vec<Value> = events.into_iter().chain([late, void]).collect();
    let usage = whole.write("usage.ndjson", &lines(&all));
    ok(&["rate", "-C", whole.text(), "--usage", usage.to_str().unwrap(), "--to", "2026-10-01"]);
    let nothing = project.write("nothing.ndjson", "");
    ok(&["rate", "-C", project.text(), "--usage", nothing.to_str().unwrap(), "--to", "2026-10-01"]);
    assert_eq!(net(&project), net(&whole));
}

#[test]
fn old_files_are_removed_and_what_readers_need_stays() {
    let project = with_daily("[upkeep]\nlive = false\nfiles = 2\nkeep_files = \"1 second\"\n[limits]\nquery_time = \"1 second\"\n");
    let events = september(120);
    in_epochs(&project, &events, 6);
    let before = rows(&project);
    let small = parquet(&project.path().join("lake/usage"));
    upkeep(&project, &[]);
    // A crash left a file that no commit names; another waits for the commit of an epoch.
    let stray = project.write("lake/usage/day=2026-09-01/part-stray.parquet", "");
    let two_days_ago = std::time::SystemTime::now() - Duration::from_secs(2 * 86_400);
    std::fs::File::options().write(true).open(&stray).unwrap().set_modified(two_days_ago).unwrap();
    let waiting = project.write("lake/usage/day=2026-09-01/part-waiting.parquet", "");
    std::thread::sleep(Duration::from_millis(2500));
    // The last completed epoch is from before the files were joined: somebody may read as of it.
    let kept = upkeep(&project, &[]);
    assert_eq!(table(&kept, "usage")["removed"], 1, "{kept}");
    assert!(!stray.exists() && waiting.exists());
    assert!(small.iter().all(|file| file.exists()));
    assert_eq!(rows(&project), before);
    // After an epoch, nobody does.
    let more = project.write("more.ndjson", &lines(&[kwh("more", "m2", "2026-09-04T00:00:00Z", "1")]));
    ok(&["rate", "-C", project.text(), "--usage", more.to_str().unwrap()]);
    let before = rows(&project);
    let removed = upkeep(&project, &[]);
    assert_eq!(table(&removed, "usage")["removed"], small.len(), "{removed}");
    assert!(small.iter().all(|file| !file.exists()));
    assert_eq!(rows(&project), before);
    assert!(read_by_others(&project).contains("usage duckdb"));
    audit(&project);
    // Every charge is explained as of its epoch, though the files of then are gone.
    for charge in sql(project.path(), "SELECT charge_id FROM charges ORDER BY epoch LIMIT 3") {
        let explained: Value =
            serde_json::from_str(&ok(&["explain", "charge", &charge, "-C", project.text(), "--format", "json"])).unwrap();
        assert_eq!(explained["recomputed"]["equal"], true, "{explained}");
        assert!(!explained["events"].as_array().unwrap().is_empty(), "{explained}");
    }
    // A start reads everything that it needs, too.
    std::fs::remove_dir_all(project.path().join("log/dedup")).unwrap();
    let engine = Engine::start(project.path());
    assert_eq!(engine.send(&events)["duplicates"], 120);
    engine.stop();
    assert_eq!(rows(&project)[0], before[0]);
    audit(&project);
}

#[test]
fn a_running_engine_keeps_its_lake_whenever_it_is_killed() {
    let project = with_daily(
        "[upkeep]\ninterval = \"20 milliseconds\"\nfiles = 2\ncheckpoint = 3\nkeep_files = \"2 seconds\"\n[limits]\nquery_time = \"2 seconds\"\n",
    );
    let mut random = StdRng::seed_from_u64(4);
    let mut events = september(1200);
    let mut engine = Engine::start(project.path());
    for part in events.chunks(40) {
        engine.send(part);
        if random.random_bool(0.3) {
            std::thread::sleep(Duration::from_millis(random.random_range(0..400)));
            engine.kill();
            engine = Engine::start(project.path());
        }
    }
    wait("all is stored", || sql(project.path(), "SELECT count(*), count(DISTINCT id) FROM usage") == ["1200,1200"]);
    // Files are joined while it runs, and removed once an epoch was completed since.
    wait("small files are gone", || {
        let event = kwh(&format!("more-{}", events.len()), "m1", "2026-09-09T09:00:00Z", "1");
        engine.send(std::slice::from_ref(&event));
        events.push(event);
        parquet(&project.path().join("lake/usage")).len() < 28 * 4
    });
    let (_, metrics) = engine.get("/metrics");
    for name in ["ratemill_compactions_total{table=\"usage\"}", "ratemill_delta_checkpoints_total", "ratemill_table_files"] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
    engine.stop();
    audit(&project);
    let nothing = project.write("nothing.ndjson", "");
    ok(&["rate", "-C", project.text(), "--usage", nothing.to_str().unwrap(), "--close"]);
    let clean = Project::new("");
    daily(&clean);
    let usage = clean.write("usage.ndjson", &lines(&events));
    ok(&["rate", "-C", clean.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    assert_eq!(net(&project), net(&clean));
    let columns = "SELECT source, id, meter, subject, time, quantity FROM usage ORDER BY id";
    assert_eq!(sql(project.path(), columns), sql(clean.path(), columns));
    audit(&project);
}

#[test]
fn a_lake_that_is_held_is_left_alone() {
    let project = Project::with_http();
    let engine = Engine::start(project.path());
    engine.send(&september(10));
    first_epoch(&project);
    let held = ratemill(&["upkeep", "-C", project.text()], &[]);
    assert_eq!(held.status.code(), Some(5), "{}", String::from_utf8_lossy(&held.stderr));
    assert_eq!(upkeep(&project, &["--dry-run"])["dry_run"], true);
    engine.stop();
    let wrong = project.path().join("ratemill.toml");
    let toml = std::fs::read_to_string(&wrong).unwrap();
    std::fs::write(&wrong, format!("{toml}\n[upkeep]\nkeep_files = \"5 seconds\"\n")).unwrap();
    let refused = ratemill(&["upkeep", "-C", project.text()], &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("limits.query_time"));
}

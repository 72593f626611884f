//! Large Parquet files are usage as they are: the same charges as when their rows are written again, whatever comes before,
//! between and after.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::engine::{Engine, ok, ratemill, sql, wait};
use crate::project::{Project, RULE, kwh, lines, september};
use crate::servers::python;

const NET: &str = "SELECT customer_id, item, currency, window_start, sum(amount), sum(quantity) FROM charges
     GROUP BY customer_id, item, currency, window_start HAVING sum(amount) <> 0 ORDER BY 1, 4";
const ALL_USAGE: &str = "SELECT source, id, meter, subject, time, quantity, log_position >= 0, day FROM usage ORDER BY source, id";
const ADOPTING: &str = "[limits]\nadopted_size = \"1 kB\"\n";

/// Writes `events` as a Parquet file with a column `site` beside those of usage, in row groups of 64.
fn parquet(project: &Project, name: &str, events: &[serde_json::Value]) -> PathBuf {
    let rows: String = events
        .iter()
        .map(|event| {
            let of = |field: &str| event[field].as_str().unwrap().to_owned();
            let row = json!({"source": of("source"), "id": of("id"), "meter": of("type"), "subject": of("subject"), "time": of("time"),
                "quantity": event["data"]["quantity"].as_str().unwrap(), "site": "north"});
            format!("{row}\n")
        })
        .collect();
    let text = project.write(&format!("{name}.rows"), &rows);
    let file = project.path().join(name);
    let program = "import duckdb,sys; duckdb.sql(f\"COPY (SELECT source, id, meter, subject, time::TIMESTAMPTZ AS time, quantity::DECIMAL(18,3) AS quantity, site FROM read_json('{sys.argv[1]}', columns={{source:'VARCHAR',id:'VARCHAR',meter:'VARCHAR',subject:'VARCHAR',time:'VARCHAR',quantity:'VARCHAR',site:'VARCHAR'}}, format='newline_delimited')) TO '{sys.argv[2]}' (FORMAT parquet, ROW_GROUP_SIZE 64)\")";
    python(program, &[text.to_str().unwrap(), file.to_str().unwrap()], &[]);
    file
}

fn rate(project: &Project, files: &[&Path]) {
    let mut arguments = vec!["rate", "-C", project.text(), "--close", "--usage"];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    ok(&arguments);
}

fn adopted(project: &Project) -> Vec<String> {
    sql(project.path(), "SELECT rows, left_out FROM adopted ORDER BY log_position")
}

#[test]
fn adopted_rows_are_charged_as_rows_that_are_written() {
    let events = september(400);
    let written = Project::new("");
    let file = parquet(&written, "usage.parquet", &events);
    rate(&written, &[&file]);
    assert_eq!(sql(written.path(), "SELECT count(*) FROM adopted"), ["0"]);
    let project = Project::new(ADOPTING);
    // The first ten come by another way before; one comes twice within the file.
    let first = project.write("first.ndjson", &lines(&events[..10]));
    let mut rows = events.clone();
    rows.push(events[399].clone());
    let file = parquet(&project, "usage.parquet", &rows);
    rate(&project, &[&first, &file]);
    let left_out: Vec<u32> = (0..10).chain([400]).collect();
    assert_eq!(adopted(&project), [format!("401,\"{}\"", serde_json::to_string(&left_out).unwrap())]);
    assert_eq!(sql(project.path(), NET), sql(written.path(), NET));
    assert_eq!(sql(project.path(), ALL_USAGE), sql(written.path(), ALL_USAGE));
    assert_eq!(sql(project.path(), "SELECT count(DISTINCT log_position), count(*) FROM usage"), ["400,400"]);
    let attributes = "SELECT attributes FROM usage WHERE id = 'e77'";
    assert_eq!(sql(project.path(), attributes), sql(written.path(), attributes));
    ok(&["audit", "-C", project.text()]);
    // Sent again, over any way, nothing changes; a file of which no row is new is not kept.
    let again = parquet(&project, "again.parquet", &rows[..300]);
    let by_another_way = project.write("again.ndjson", &lines(&events));
    rate(&project, &[&again, &by_another_way]);
    assert_eq!(adopted(&project).len(), 1);
    assert_eq!(sql(project.path(), NET), sql(written.path(), NET));
    // The index of ids is lost, and made again from the file.
    std::fs::remove_dir_all(project.path().join("log/dedup")).unwrap();
    let third = project.write("third.ndjson", &lines(&events[200..]));
    rate(&project, &[&third]);
    assert_eq!(sql(project.path(), "SELECT count(*) FROM usage"), ["400"]);
}

#[test]
fn a_file_with_a_bad_row_or_a_conflict_is_read_row_by_row() {
    let project = Project::new(ADOPTING);
    let mut events = september(300);
    let first = project.write("first.ndjson", &lines(&[kwh("e5", "m1", "2026-09-05T00:00:00Z", "999")]));
    events[7] = kwh("e7", "", "2026-09-05T00:00:00Z", "1");
    let bad = parquet(&project, "bad.parquet", &events[..150]);
    rate(&project, &[&first, &bad]);
    let conflict = parquet(&project, "conflict.parquet", &events[5..6].iter().chain(&events[150..]).cloned().collect::<Vec<_>>());
    rate(&project, &[&conflict]);
    assert_eq!(adopted(&project), Vec::<String>::new());
    let rejected = "SELECT reason, count(*) FROM rejected GROUP BY reason ORDER BY reason";
    assert_eq!(sql(project.path(), rejected), ["empty_subject,1", "identity_conflict,1"]);
    assert_eq!(sql(project.path(), "SELECT count(*) FROM usage"), ["299"]);
}

#[test]
fn the_engine_adopts_drops_folds_them_and_corrects_them() {
    let toml = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n{ADOPTING}[[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"100 milliseconds\"\npoll = \"50 milliseconds\"\nmapping = {{ id = \"id\", source = \"source\" }}\n"
    );
    let events = september(400);
    let written = Project::new("");
    let file = written.write("all.ndjson", &lines(&events));
    ok(&["rate", "-C", written.text(), "--usage", file.to_str().unwrap(), "--to", "2026-10-01"]);
    for epoch in ["200 milliseconds", "1 hour"] {
        let project = Project::new(&format!("[epoch]\ninterval = \"{epoch}\"\n{toml}"));
        project.write("rules/energy.sql", &RULE.replace("1 day", "3650 days"));
        let engine = Engine::start(project.path());
        engine.send(&events[..50]);
        let staged = parquet(&project, "staged.parquet", &events[40..]);
        std::fs::create_dir_all(project.path().join("drop")).unwrap();
        std::fs::rename(staged, project.path().join("drop/usage.parquet")).unwrap();
        // Running charges have it before the epoch and after.
        let total = || -> String {
            let (_, body) = engine.get("/v1/running-charges?customer_id=cust-3");
            let row = body.lines().find(|line| line.starts_with('{')).unwrap_or("{}").to_owned();
            serde_json::from_str::<serde_json::Value>(&row).unwrap()["amount"].as_str().unwrap_or_default().to_owned()
        };
        let expected = sql(written.path(), "SELECT sum(amount) FROM charges WHERE customer_id = 'cust-3'");
        wait("running charges have the file", || vec![total()] == expected);
        // A row of the file is voided, then the engine is killed.
        engine.send(&[json!({"specversion": "1.0", "source": "office", "id": "v1", "type": "ratemill.void",
            "data": {"target": {"source": "test", "id": "e103"}}})]);
        let void = total();
        assert_ne!(vec![void.clone()], expected);
        engine.kill();
        let engine = Engine::start(project.path());
        let (_, body) = engine.get("/v1/running-charges?customer_id=cust-3");
        assert!(body.contains(&format!("\"amount\":\"{void}\"")), "{void}: {body}");
        engine.stop();
        assert_eq!(sql(project.path(), "SELECT count(*) FROM adopted"), ["1"]);
        assert_eq!(sql(project.path(), "SELECT count(*) FROM usage"), ["400"]);
        assert_eq!(sql(project.path(), "SELECT count(*) FROM effective_usage"), ["399"]);
        project.write("rules/energy.sql", RULE);
        let again =
            ratemill(&["rate", "-C", project.text(), "--usage", staged_text(&project).to_str().unwrap(), "--to", "2026-10-01"], &[]);
        assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        assert_eq!(sql(project.path(), "SELECT sum(amount) FROM charges WHERE customer_id = 'cust-3'"), [void]);
        ok(&["audit", "-C", project.text()]);
    }
}

/// The rows of the staged file, as NDJSON that adds nothing.
fn staged_text(project: &Project) -> PathBuf {
    project.write("nothing.ndjson", "")
}

#[test]
fn late_rows_of_a_file_correct_published_windows() {
    let events = september(200);
    let written = Project::new("");
    let file = written.write("all.ndjson", &lines(&events));
    ok(&["rate", "-C", written.text(), "--usage", file.to_str().unwrap(), "--close"]);
    let project = Project::new(ADOPTING);
    let first = parquet(&project, "first.parquet", &events[..120]);
    rate(&project, &[&first]);
    let late = parquet(&project, "late.parquet", &events[120..]);
    rate(&project, &[&late]);
    assert_eq!(adopted(&project).len(), 2);
    assert_eq!(sql(project.path(), NET), sql(written.path(), NET));
    assert!(sql(project.path(), "SELECT count(*) FROM charges WHERE class = 'correction'") != ["0"]);
    ok(&["audit", "-C", project.text()]);
}

#[test]
fn a_dimension_that_is_declared_later_comes_with_adopted_files_alone() {
    let project = Project::new(ADOPTING);
    let events = september(200);
    let first = parquet(&project, "first.parquet", &events[..100]);
    rate(&project, &[&first]);
    let toml = std::fs::read_to_string(project.path().join("ratemill.toml")).unwrap();
    project.write("ratemill.toml", &format!("{toml}\n[dimensions]\nsite = \"text\"\n"));
    let second = parquet(&project, "second.parquet", &events[100..]);
    rate(&project, &[&second]);
    assert_eq!(adopted(&project).len(), 2);
    let by_site = "SELECT site, count(*) FROM usage GROUP BY site ORDER BY site NULLS FIRST";
    assert_eq!(sql(project.path(), by_site), [",100", "north,100"]);
    // The columns came without a file.
    let files = std::fs::read_dir(project.path().join("lake/usage")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(files.collect::<Vec<_>>(), ["_delta_log"]);
    ok(&["audit", "-C", project.text()]);
}

/// Adopted files in the lake, which are made two days old.
fn two_days_old(project: &Project) -> usize {
    let before = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 86_400);
    let files = std::fs::read_dir(project.path().join("lake/adopted_files")).unwrap();
    let paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    for path in &paths {
        std::fs::File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
    }
    paths.len()
}

#[test]
fn files_that_became_no_usage_are_removed_after_a_day() {
    let project = Project::new(&format!("{ADOPTING}[upkeep]\nlive = false\n"));
    let mut events = september(300);
    let good = parquet(&project, "good.parquet", &events[..100]);
    events[107] = kwh("e107", "", "2026-09-05T00:00:00Z", "1");
    let bad = parquet(&project, "bad.parquet", &events[100..200]);
    rate(&project, &[&good, &bad]);
    let upkeep = |more: &[&str]| -> serde_json::Value {
        serde_json::from_str(&ok(&[&["upkeep", "-C", project.text(), "--format", "json"], more].concat())).unwrap()
    };
    assert_eq!(upkeep(&[])["adopted_files_removed"], 0);
    // A file that the log names, and no table yet.
    let toml = std::fs::read_to_string(project.path().join("ratemill.toml")).unwrap();
    let drop = "[http]\nlisten = \"127.0.0.1:0\"\n[[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"0 seconds\"\npoll = \"50 milliseconds\"\nmapping = { id = \"id\", source = \"source\" }\n";
    project.write("ratemill.toml", &format!("{}{drop}", toml.replace("200 milliseconds", "1 hour")));
    let engine = Engine::start(project.path());
    let logged = parquet(&project, "logged.parquet", &events[200..]);
    std::fs::create_dir_all(project.path().join("drop")).unwrap();
    std::fs::rename(logged, project.path().join("drop/logged.parquet")).unwrap();
    wait("the file is taken", || std::fs::read_to_string(project.path().join("engine.stderr")).unwrap().contains("file taken"));
    engine.kill();
    assert_eq!(two_days_old(&project), 3);
    assert_eq!(upkeep(&["--dry-run"])["adopted_files_removed"], 1);
    assert_eq!(two_days_old(&project), 3);
    assert_eq!(upkeep(&[])["adopted_files_removed"], 1);
    assert_eq!(two_days_old(&project), 2);
    rate(&project, &[&staged_text(&project)]);
    assert_eq!(adopted(&project).len(), 2);
    assert_eq!(sql(project.path(), "SELECT count(*), count(DISTINCT subject) FROM usage"), ["299,10"]);
}

#[test]
fn a_file_that_cannot_be_read_stops_the_epoch_and_is_no_mistake_of_a_rule() {
    let project = Project::new(ADOPTING);
    let file = parquet(&project, "usage.parquet", &september(200));
    rate(&project, &[&file]);
    assert_eq!(adopted(&project).len(), 1);
    let records = |kind: &str| {
        let names = std::fs::read_dir(project.path().join("lake/epochs")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(kind)).count()
    };
    let files = std::fs::read_dir(project.path().join("lake/adopted_files")).unwrap().map(|entry| entry.unwrap().path());
    let kept = files.filter(|path| path.extension().is_some_and(|extension| extension == "parquet")).last().unwrap();
    let away = kept.with_extension("away");
    std::fs::rename(&kept, &away).unwrap();
    let late = project.write("late.ndjson", &lines(&[kwh("late", "m3", "2026-09-15T00:00:00Z", "7.5")]));
    let output = ratemill(&["rate", "-C", project.text(), "--close", "--usage", late.to_str().unwrap()], &[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && stderr.contains("window 2026-09-01T00:00:00Z"), "{stderr}");
    assert!(stderr.contains(": the adopted file adopted_files/") && !stderr.contains("xternal error: the"), "{stderr}");
    assert_eq!(records(".manifest.json"), records(".done.json") + 1, "the epoch is not completed: {stderr}");
    std::fs::rename(&away, &kept).unwrap();
    rate(&project, &[&late]);
    let whole = Project::new("");
    let all = whole.write("all.ndjson", &lines(&september(200)));
    let late = whole.write("late.ndjson", &lines(&[kwh("late", "m3", "2026-09-15T00:00:00Z", "7.5")]));
    rate(&whole, &[&all, &late]);
    assert_eq!(sql(project.path(), NET), sql(whole.path(), NET));
}

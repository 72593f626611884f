//! The lake on S3 and in other people's hands.

use crate::batch::net;
use crate::engine::{Engine, ok, ok_with, ratemill, sql, sql_with, wait};
use crate::project::{Project, kwh, lines, september};
use crate::servers::{S3, python};

/// Reads the Delta tables with three independent readers.
const READERS: &str = r"
import sys, deltalake, polars, duckdb
root, options = sys.argv[1], dict(pair.split('=', 1) for pair in sys.argv[2:])
for table, column in [('usage', 'quantity'), ('charges', 'amount')]:
    delta = deltalake.DeltaTable(f'{root}/{table}', storage_options=options or None)
    frame = polars.read_delta(f'{root}/{table}', storage_options=options or None)
    total = frame.select(polars.col(column).sum(), polars.len()).row(0)
    arrow = deltalake.QueryBuilder().register('t', delta).execute(f'SELECT sum({column}) AS s, count(*) AS n FROM t').read_all()
    print(table, total[0].normalize(), total[1], arrow['s'][0].as_py().normalize(), arrow['n'][0].as_py())
    if not options:
        sql = f'SELECT sum({column}), count(*) FROM read_parquet(?, hive_partitioning=true)'
        s, n = duckdb.execute(sql, [delta.file_uris()]).fetchone()
        print('duckdb', table, s.normalize(), n)
";

#[test]
fn deltalake_polars_and_duckdb_read_equal_totals() {
    let project = Project::new("");
    let usage = project.write("usage.ndjson", &lines(&september(300)));
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    let totals = |table: &str, column: &str| sql(project.path(), &format!("SELECT sum({column}), count(*) FROM {table}")).remove(0);
    let read = python(READERS, &[&format!("{}/lake", project.text())], &[]);
    let lines: Vec<Vec<&str>> = read.lines().map(|line| line.split(' ').collect()).collect();
    for (table, column) in [("usage", "quantity"), ("charges", "amount")] {
        let expected = totals(table, column);
        let (sum, count) = expected.split_once(',').unwrap();
        let delta = lines.iter().find(|line| line[0] == table).unwrap();
        assert_eq!(delta[1..], [sum, count, sum, count], "{read}");
        let duckdb = lines.iter().find(|line| line[0] == "duckdb" && line[1] == table).unwrap();
        assert_eq!(duckdb[2..], [sum, count], "{read}");
    }
}

#[test]
fn a_lake_on_s3_gives_the_same_charges_and_survives_kills_and_an_outage() {
    let mut server = S3::start();
    let environment = server.environment();
    let project = Project::new("[http]\nlisten = \"127.0.0.1:0\"\n[lake]\nurl = \"s3://lake/tenants/one\"\n");
    let events = september(300);
    let engine = Engine::start_with(project.path(), &environment);
    engine.send(&events[..100]);
    engine.kill();
    let engine = Engine::start_with(project.path(), &environment);
    engine.send(&events[50..200]);
    // While the store is away, capture goes on.
    server.away(|| {
        engine.send(&events[200..]);
        engine.send(&[kwh("october", "m0", "2026-10-05T00:00:00Z", "0")]);
        std::thread::sleep(std::time::Duration::from_secs(1));
    });
    let published = || {
        let output = ratemill(&["sql", "-C", project.text(), "-c", "SELECT count(*) > 0 FROM charges", "--format", "csv"], &environment);
        String::from_utf8(output.stdout).unwrap().contains("true")
    };
    wait("September is published", published);
    engine.stop();
    let on_s3 = sql_with(
        project.path(),
        "SELECT customer_id, item, billing_period, currency, sum(quantity) AS quantity, sum(amount) AS amount FROM charges GROUP BY customer_id, item, billing_period, currency ORDER BY 1",
        &environment,
    );
    let local = Project::new("");
    let usage = local.write("usage.ndjson", &lines(&events));
    ok(&["rate", "-C", local.text(), "--usage", usage.to_str().unwrap(), "--close"]);
    assert_eq!(on_s3, net(&local));
    let options: Vec<String> = environment
        .iter()
        .filter(|(name, _)| name != "AWS_ENDPOINT")
        .map(|(name, value)| format!("{name}={value}"))
        .chain(["aws_conditional_put=etag".to_owned()])
        .collect();
    let mut arguments = vec!["s3://lake/tenants/one"];
    arguments.extend(options.iter().map(String::as_str));
    let read = python(READERS, &arguments, &[]);
    assert!(read.contains("usage ") && read.lines().any(|line| line.starts_with("usage") && line.ends_with("301")), "{read}");
    ok_with(&["rate", "-C", project.text(), "--re-rate", "--from", "2026-09-01", "--to", "2026-10-01"], &environment);
}

#[test]
fn a_lost_index_of_ids_is_rebuilt() {
    let project = Project::with_http();
    let engine = Engine::start(project.path());
    let events = september(100);
    engine.send(&events);
    engine.post(&[("content-type", "application/cloudevents+json")], b"{\"specversion\":\"1.0\",\"id\":\"bad\"}");
    engine.stop();
    std::fs::remove_dir_all(project.path().join("log/dedup")).unwrap();
    let engine = Engine::start(project.path());
    let answer = engine.send(&events);
    assert_eq!((answer["accepted"].as_u64(), answer["duplicates"].as_u64()), (Some(0), Some(100)));
    let answer = engine.send(&[kwh("e1", "m1", "2026-09-02T01:01:00Z", "99")]);
    assert_eq!(answer["rejected"][0]["reason"], "identity_conflict");
    engine.stop();
    // Beyond the horizon ids are looked up on disk, and are as exact.
    let toml = std::fs::read_to_string(project.path().join("ratemill.toml")).unwrap();
    project.write("ratemill.toml", &toml.replace("[epoch]\n", "[epoch]\ndedup_horizon = \"0 seconds\"\n"));
    let engine = Engine::start(project.path());
    project.wait_until_ids_aged();
    let answer = engine.send(&events);
    assert_eq!((answer["accepted"].as_u64(), answer["duplicates"].as_u64()), (Some(0), Some(100)));
    engine.stop();
}

#[test]
fn ids_age_while_the_engine_runs_and_stay_known() {
    let project =
        Project::new("[http]\nlisten = \"127.0.0.1:0\"\n[epoch]\ninterval = \"200 milliseconds\"\ndedup_horizon = \"0 seconds\"\n");
    let engine = Engine::start(project.path());
    let events = september(300);
    for part in events.chunks(100) {
        engine.send(part);
        project.wait_until_ids_aged();
    }
    assert_eq!(engine.send(&events)["duplicates"], 300);
    let mut moved = events[7].clone();
    moved["time"] = "2026-09-03T04:05:06Z".into();
    let answer = engine.send(&[moved]);
    assert_eq!(answer["rejected"][0]["reason"], "identity_conflict", "{answer}");
    engine.stop();
}

#[test]
fn queries_only_read() {
    let project = Project::new("");
    let usage = project.write("usage.ndjson", &lines(&september(3)));
    ok(&["rate", "-C", project.text(), "--usage", usage.to_str().unwrap()]);
    for refused in [
        "DROP TABLE charges",
        "CREATE TABLE x AS SELECT 1",
        "INSERT INTO charges SELECT * FROM charges",
        "COPY usage TO '/tmp/ratemill-should-not-exist.csv'",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM generate_series(1, 1000000000)",
        "SET datafusion.execution.batch_size = 1",
        "SELECT 1; SELECT 2",
    ] {
        let output = ratemill(&["sql", "-C", project.text(), "-c", refused], &[]);
        assert_eq!(output.status.code(), Some(1), "{refused}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

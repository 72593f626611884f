//! File drops: taken once, when complete; bad rows named by line; changes reported.

use crate::engine::{Engine, ok_with, sql, sql_with, wait};
use crate::project::{Project, kwh, lines, september};
use crate::servers::S3;

const DROP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[[files]]\nname = \"drop\"\nurl = \"drop\"\nsettle = \"300 milliseconds\"\npoll = \"50 milliseconds\"\n";

fn count(project: &Project, table: &str) -> String {
    let output =
        crate::engine::ratemill(&["sql", "-C", project.text(), "-c", &format!("SELECT count(*) FROM {table}"), "--format", "csv"], &[]);
    String::from_utf8(output.stdout).unwrap().lines().nth(1).unwrap_or("0").to_owned()
}

#[test]
fn a_file_is_taken_once_and_a_change_is_reported() {
    let project = Project::new(DROP);
    let engine = Engine::start(project.path());
    let events = september(50);
    let mut text = lines(&events);
    text.push_str("not json\n{\"specversion\":\"1.0\"}\n");
    project.write("drop/unfinished.ndjson.tmp", "{");
    project.drop_file("drop/a.ndjson", text.as_bytes());
    wait("the file is taken", || count(&project, "files") == "1");
    assert_eq!(count(&project, "usage"), "50");
    assert_eq!(
        sql(project.path(), "SELECT reason, position, connector FROM rejected ORDER BY position"),
        ["not_json,a.ndjson line 51,drop", "missing_data,a.ndjson line 52,drop"]
    );
    // The engine is restarted: the file is not taken again.
    engine.stop();
    let engine = Engine::start(project.path());
    project.drop_file("drop/b.ndjson", lines(&[kwh("b", "m1", "2026-09-01T00:00:00Z", "1")]).as_bytes());
    wait("the second file is taken", || count(&project, "files") == "2");
    // A file that grew after it was taken is reported, not read.
    project.drop_file("drop/a.ndjson", lines(&september(60)).as_bytes());
    wait("the change is reported", || count(&project, "rejected") == "3");
    assert_eq!(sql(project.path(), "SELECT state FROM files WHERE path = 'a.ndjson' ORDER BY claimed_at"), ["taken", "changed"]);
    assert_eq!(count(&project, "usage"), "51");
    engine.stop();
}

#[test]
fn an_s3_prefix_is_a_drop_too() {
    let server = S3::start();
    let environment = server.environment();
    let project = Project::new(
        "[http]\nlisten = \"127.0.0.1:0\"\n[[files]]\nname = \"bucket\"\nurl = \"s3://lake/drops-in\"\nsettle = \"0 seconds\"\npoll = \"100 milliseconds\"\n",
    );
    let file = project.write("usage.ndjson", &lines(&september(40)));
    let program = "import boto3,sys; boto3.client('s3', endpoint_url=sys.argv[1], aws_access_key_id='testkey', aws_secret_access_key='testsecret', region_name='us-east-1').upload_file(sys.argv[2], 'lake', 'drops-in/2026/usage.ndjson')";
    crate::servers::python(program, &[&server.endpoint(), file.to_str().unwrap()], &[]);
    let engine = Engine::start_with(project.path(), &environment);
    wait("the object is taken", || {
        let output =
            crate::engine::ratemill(&["sql", "-C", project.text(), "-c", "SELECT path, rows FROM files", "--format", "csv"], &environment);
        String::from_utf8(output.stdout).unwrap().contains("2026/usage.ndjson,40")
    });
    engine.stop();
    assert_eq!(sql_with(project.path(), "SELECT count(*) FROM usage", &environment), ["40"]);
    ok_with(&["rejected", "list", "-C", project.text()], &environment);
}

//! Charges against an outside authority: DuckDB computes them from the same files by other means.

use std::path::Path;
use std::process::Command;

use crate::engine::{ok, sql};
use crate::servers::venv;

/// Runs a program of `tests/differential`; returns whether it succeeded and what it wrote.
fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("differential").join(program);
    let output = Command::new(venv().join("bin/python")).arg(path).args(arguments).output().unwrap();
    (output.status.success(), [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

#[test]
fn duckdb_computes_the_same_charges() {
    let seed = std::env::var("RATEMILL_SEED").unwrap_or_else(|_| "1".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().to_str().unwrap();
    let (made, output) = run("generate.py", &[project, &seed]);
    assert!(made, "{output}");
    let usage = |name: &str| format!("{project}/usage/{name}.ndjson");
    let (first, second, late) = (usage("0-first"), usage("1-second"), usage("2-late"));
    let range = ["--from", "2025-12-01", "--to", "2026-07-02"];
    ok(&[&["rate", "-C", project, "--usage", &first, &second], range.as_slice()].concat());
    ok(&[&["rate", "-C", project, "--usage", &late], range.as_slice()].concat());
    assert_ne!(sql(folder.path(), "SELECT count(*) FROM charges WHERE reverses IS NOT NULL"), ["0"], "late usage corrects charges");
    let (equal, output) = run("compare.py", &[project]);
    assert!(equal, "seed {seed}:\n{output}");
    println!("differential test: {}", output.lines().last().unwrap_or_default());
}

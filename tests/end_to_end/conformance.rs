//! Cases with expected amounts from other systems, priced by rules; `cargo run -p ratemill-tests --bin conformance` shows them.

use std::process::Command;

#[test]
fn every_case_is_priced_as_expected() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let runner = crate::engine::binary().with_file_name("conformance");
    let run = |cases: &std::path::Path| Command::new(&runner).arg(cases).output().unwrap();
    let output = run(&folder.join("cases.json"));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.ends_with("375 passed, 0 failed\n"), "{shown}");
    assert!(output.status.success());
    // The runner can fail: a wrong figure and a model that it does not know do.
    let mut cases: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    cases.truncate(2);
    cases[0]["expected"]["amount"] = "123.456".into();
    cases[1]["model"] = "unheard_of".into();
    let wrong = tempfile::tempdir().unwrap();
    let wrong = wrong.path().join("cases.json");
    std::fs::create_dir_all(wrong.parent().unwrap()).unwrap();
    std::fs::write(&wrong, serde_json::to_vec(&cases).unwrap()).unwrap();
    let output = run(&wrong);
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("0 passed, 2 failed\n"));
    assert_eq!(output.status.code(), Some(1));
}

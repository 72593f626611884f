//! The shape of the workspace: who may know whom, and one version of each big crate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Value {
    // Crates of other platforms need not be here.
    let host = String::from_utf8(Command::new("rustc").arg("-vV").output().unwrap().stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let Some(name) = package["name"].as_str().unwrap().strip_prefix("ratemill-") else { continue };
        if package["source"].is_null() {
            let own = package["dependencies"].as_array().unwrap().iter().filter(|dependency| dependency["kind"].is_null());
            let own = own.filter_map(|dependency| dependency["name"].as_str().unwrap().strip_prefix("ratemill-").map(str::to_owned));
            found.insert(name.to_owned(), own.collect());
        }
    }
    let allowed: [(&str, &[&str]); 6] = [
        ("schemas", &[]),
        ("rules", &["schemas"]),
        ("connectors", &["schemas"]),
        ("engine", &["connectors", "rules", "schemas"]),
        ("benches", &["connectors", "rules", "schemas"]),
        ("tests", &["rules", "schemas"]),
    ];
    for (name, allowed) in allowed {
        let allowed: BTreeSet<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        assert!(found[name].is_subset(&allowed), "{name} depends on {:?}, may depend on {allowed:?}", found[name]);
    }
    assert_eq!(found.len(), 6);
}

#[test]
fn one_version_of_each_big_crate() {
    let metadata = metadata();
    for name in ["datafusion", "arrow", "parquet", "object_store", "deltalake-core", "sqlparser", "tokio", "axum", "rustls"] {
        let versions: BTreeSet<&str> = metadata["packages"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|package| package["name"] == name)
            .map(|package| package["version"].as_str().unwrap())
            .collect();
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn each_library_has_its_room() {
    let root = root();
    // (crate folder, word, files that may say it)
    let rooms: [(&str, &str, &[&str]); 6] = [
        ("engine", "axum::", &["src/api.rs"]),
        ("engine", "clap::", &["src/cli"]),
        ("schemas", "datafusion::", &[]),
        ("connectors", "datafusion::", &[]),
        ("rules", "deltalake", &[]),
        ("rules", "object_store", &[]),
    ];
    for (folder, word, allowed) in rooms {
        let mut files = Vec::new();
        sources(&root.join(folder), &mut files);
        for file in files {
            let relative = file.strip_prefix(root.join(folder)).unwrap().display().to_string();
            let text = std::fs::read_to_string(&file).unwrap();
            let says = text.lines().any(|line| line.contains(word) && !line.trim_start().starts_with("//"));
            assert!(!says || allowed.iter().any(|room| relative.starts_with(room)), "{folder}/{relative} names {word}");
        }
    }
}

#[test]
fn no_file_outgrows_its_reader() {
    let root = root();
    for folder in ["schemas", "rules", "connectors", "engine"] {
        let mut files = Vec::new();
        sources(&root.join(folder).join("src"), &mut files);
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let production = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
            assert!(production <= 650, "{} has {production} lines", file.display());
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!["utils.rs", "helpers.rs", "common.rs"].contains(&name.as_str()), "{} says nothing", file.display());
        }
    }
}

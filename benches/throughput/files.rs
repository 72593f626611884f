//! Files into durable, deduplicated usage, and windows into charges.

use std::io::Write;
use std::path::Path;

use ratemill_benches::Usage;

use crate::Measurement;
use crate::process::{event, project, watched};

const TOML: &str = "[epoch]\nsize = \"256 MiB\"\n";

pub fn write_ndjson(folder: &Path, events: std::ops::Range<usize>) -> String {
    let path = folder.join("in");
    std::fs::create_dir_all(&path).unwrap();
    for start in events.clone().step_by(100_000) {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path.join(format!("{start:09}.ndjson"))).unwrap());
        for n in start..(start + 100_000).min(events.end) {
            writeln!(file, "{}", event(n)).unwrap();
        }
    }
    path.to_str().unwrap().to_owned()
}

fn write_csv(folder: &Path, events: usize) -> String {
    let path = folder.join("usage.csv");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    writeln!(file, "source,id,meter,subject,time,quantity").unwrap();
    for n in 0..events {
        let text = event(n);
        let field = |name: &str| text.split(&format!("\"{name}\":\"")).nth(1).unwrap().split('"').next().unwrap().to_owned();
        writeln!(
            file,
            "{},{},{},{},{},{}",
            field("source"),
            field("id"),
            field("type"),
            field("subject"),
            field("time"),
            field("quantity")
        )
        .unwrap();
    }
    path.to_str().unwrap().to_owned()
}

/// Nothing is finalized: the range lies before all usage.
pub fn capture(project: &Path, input: &str) -> (f64, Usage) {
    watched(&["rate", "-C", project.to_str().unwrap(), "--usage", input, "--from", "2020-01-01", "--to", "2020-01-02"])
}

fn line(name: &str, events: usize, (seconds, usage): (f64, Usage)) {
    let name = name.to_owned();
    Measurement {
        name,
        events,
        seconds,
        engine_seconds: usage.cpu_seconds,
        sender_seconds: 0.0,
        latencies: Vec::new(),
        peak_mib: usage.peak_mib,
    }
    .print();
}

pub fn measure_capture(events: usize) {
    let folder = project(TOML);
    let input = write_ndjson(folder.path(), 0..events);
    line("NDJSON files to usage", events, capture(folder.path(), &input));
    let parquet = folder.path().join("lake/usage");
    let csv_folder = project(TOML);
    let csv = write_csv(csv_folder.path(), events);
    line("CSV file to usage", events, capture(csv_folder.path(), &csv));
    // The Parquet files that the first run wrote, gathered as one input.
    let parquet_folder = project(TOML);
    let input = parquet_folder.path().join("in");
    std::fs::create_dir_all(&input).unwrap();
    gather(&parquet, &input, &mut 0);
    line("Parquet files to usage", events, capture(parquet_folder.path(), input.to_str().unwrap()));
}

fn gather(from: &Path, to: &Path, count: &mut usize) {
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            gather(&path, to, count);
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            std::fs::copy(&path, to.join(format!("{count:05}.parquet"))).unwrap();
            *count += 1;
        }
    }
}

pub fn measure_rating(events: usize) {
    let folder = project(TOML);
    let input = write_ndjson(folder.path(), 0..events);
    capture(folder.path(), &input);
    let empty = folder.path().join("empty.ndjson");
    std::fs::write(&empty, "").unwrap();
    let rated = watched(&["rate", "-C", folder.path().to_str().unwrap(), "--usage", empty.to_str().unwrap(), "--close"]);
    line("rating a month, one rule", events, rated);
}

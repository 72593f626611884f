//! A start with events in open windows: with nothing but the lake, and after a kill with a checkpoint.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Measurement;
use crate::files::{capture, write_ndjson};
use crate::process::{Engine, RULE, event, project};

const TOML: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[epoch]\ninterval = \"1 second\"\ncheckpoint = \"0 seconds\"\nsize = \"256 MiB\"\n";
/// Events that are written, taken and removed at once.
const PART: usize = 1_000_000;
/// For a checkpoint to be written.
const PATIENCE: Duration = Duration::from_secs(300);

pub fn measure(events: usize) {
    let folder = project(TOML);
    // September stays open, whenever this runs.
    std::fs::write(folder.path().join("rules/energy.sql"), RULE.replace("1 day", "36500 days")).unwrap();
    for first in (0..events).step_by(PART) {
        let input = write_ndjson(folder.path(), first..(first + PART).min(events));
        capture(folder.path(), &input);
        std::fs::remove_dir_all(&input).unwrap();
    }
    let (engine, seconds) = started(folder.path());
    line("start, usage read again", events, seconds, &engine);
    let charges = running(&engine, "first question", "");
    // An epoch with something in it is followed by a checkpoint.
    let body = event(events);
    let (status, _) = request(
        &engine,
        &format!(
            "POST /v1/events HTTP/1.1\r\nhost: bench\r\ncontent-type: application/cloudevents+json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    );
    assert_eq!(status, 200);
    let begun = Instant::now();
    while !has_checkpoint(folder.path()) {
        assert!(begun.elapsed() < PATIENCE, "no checkpoint");
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{:<34} {:>12.1} s", "  checkpoint, after the event", begun.elapsed().as_secs_f64());
    engine.kill();
    let (engine, seconds) = started(folder.path());
    line("start after a kill, checkpoint", events, seconds, &engine);
    assert_eq!(running(&engine, "first question", ""), charges, "the same charges are there");
    running(&engine, "second question", "");
    running(&engine, "one customer", "?customer_id=cust-7");
    engine.stop();
}

/// A running engine, and the seconds until it was ready.
fn started(folder: &Path) -> (Engine, f64) {
    let begun = Instant::now();
    let engine = Engine::start(folder);
    while request(&engine, "GET /readyz HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").0 != 200 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let seconds = begun.elapsed().as_secs_f64();
    (engine, seconds)
}

fn has_checkpoint(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder.join("lake/checkpoints")) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
}

/// Asks for running charges; returns how many there are.
fn running(engine: &Engine, name: &str, query: &str) -> usize {
    let begun = Instant::now();
    let question = format!("GET /v1/running-charges{query} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
    let (status, body) = request(engine, &question);
    assert_eq!(status, 200, "{body}");
    let charges = body.lines().filter(|line| line.starts_with('{')).count();
    println!("{:<34} {:>12.3} s {charges:>12} charges", format!("  running charges, {name}"), begun.elapsed().as_secs_f64());
    charges
}

fn request(engine: &Engine, text: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(&engine.address).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

fn line(name: &str, events: usize, seconds: f64, engine: &Engine) {
    println!("{name:<34} {seconds:>12.1} s");
    let usage = engine.usage();
    Measurement {
        name: name.to_owned(),
        events,
        seconds,
        engine_seconds: usage.cpu_seconds,
        sender_seconds: 0.0,
        latencies: Vec::new(),
        peak_mib: usage.peak_mib,
    }
    .print();
}

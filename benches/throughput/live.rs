//! The live engine for minutes on end: what it sustains, how soon charges have what was acknowledged, and its memory.
//!
//! 20,000 customers × 8 meters, one graduated rule by the month, 2 % of the events up to three days late. Ids leave memory
//! after a minute here, so that what grows is seen: forty days of ids are 33 bytes each by design.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ratemill_benches::Usage;

use crate::mqtt::Broker;
use crate::process::{CUSTOMERS, Engine, project};

const BATCH: usize = 100;
const CONNECTIONS: usize = 8;
const EPOCHS: &str = "[epoch]\ninterval = \"5 seconds\"\ndedup_horizon = \"1 minute\"\n";
/// Time between two questions for running charges.
const PROBE: Duration = Duration::from_millis(500);

/// What the run has brought so far.
#[derive(Default)]
struct Run {
    sent: AtomicUsize,
    refused: AtomicUsize,
    ended: AtomicBool,
    acknowledged_ms: Mutex<Vec<f64>>,
    fresh_ms: Mutex<Vec<f64>>,
    resident_mib: Mutex<Vec<u64>>,
}

pub fn measure_http(seconds: u64) {
    let folder = project(&format!("[http]\nlisten = \"127.0.0.1:0\"\n{EPOCHS}"));
    let engine = Engine::start(folder.path());
    let run = Run::default();
    measure("HTTP, batches of 100", &engine, &run, seconds, |scope, run| {
        for _ in 0..CONNECTIONS {
            let address = engine.address.clone();
            scope.spawn(move || send(&address, run));
        }
    });
    engine.stop();
}

pub fn measure_mqtt(seconds: u64) {
    let broker = Broker::start();
    let folder = project(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n{EPOCHS}[[mqtt]]\nname = \"m\"\nurl = \"mqtt://127.0.0.1:{}\"\nclient_id = \"bench\"\ntopics = [\"meters/#\"]\n",
        broker.port
    ));
    let engine = Engine::start(folder.path());
    std::thread::sleep(Duration::from_millis(500));
    let run = Run::default();
    measure("MQTT QoS 1, one event a message", &engine, &run, seconds, |scope, run| {
        let broker = &broker;
        scope.spawn(move || {
            while !run.ended.load(Ordering::Relaxed) {
                let first = run.sent.fetch_add(20_000, Ordering::Relaxed);
                broker.publish_events((first..first + 20_000).map(live_event));
            }
        });
    });
    engine.stop();
}

fn measure<'e>(
    name: &str,
    engine: &'e Engine,
    run: &'e Run,
    seconds: u64,
    senders: impl for<'s> FnOnce(&'s std::thread::Scope<'s, 'e>, &'e Run),
) {
    let (own, before, begun) = (Usage::own(), engine.usage(), Instant::now());
    std::thread::scope(|scope| {
        senders(scope, run);
        scope.spawn(|| probe(&engine.address, run));
        while begun.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_secs(1));
            run.resident_mib.lock().unwrap().push(engine.resident_mib());
        }
        run.ended.store(true, Ordering::Relaxed);
    });
    let elapsed = begun.elapsed().as_secs_f64();
    let (after, sender) = (engine.usage(), Usage::own().cpu_seconds - own.cpu_seconds);
    #[allow(clippy::cast_precision_loss)]
    let events = accepted(&engine.address) as f64;
    let cpu = after.cpu_seconds - before.cpu_seconds;
    println!("{name}, {elapsed:.0} s");
    println!(
        "  accepted         {events:.0} events, {:.0} a second; {} calls were pushed back",
        events / elapsed,
        run.refused.load(Ordering::Relaxed)
    );
    println!("  processor        engine {:.2} s for a million events, sender {:.2} s", cpu / events * 1e6, sender / events * 1e6);
    println!("  acknowledgement  {}", quantiles(&run.acknowledged_ms));
    println!("  freshness        {}", quantiles(&run.fresh_ms));
    let resident = run.resident_mib.lock().unwrap();
    let at = |share: usize| resident.get((resident.len().max(1) - 1) * share / 6).copied().unwrap_or(0);
    println!(
        "  resident MiB     after each sixth: {}; peak {}",
        (1..=6).map(|share| at(share).to_string()).collect::<Vec<_>>().join(", "),
        after.peak_mib
    );
}

fn quantiles(milliseconds: &Mutex<Vec<f64>>) -> String {
    let mut sorted = milliseconds.lock().unwrap().clone();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => "not measured".to_owned(),
        count => {
            let at = |share: usize| sorted[(count * share / 100).min(count - 1)];
            format!("p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms, of {count}", at(50), at(99), sorted[count - 1])
        }
    }
}

/// Event `n`, whose time runs through September; each fiftieth comes up to three days late.
fn live_event(n: usize) -> String {
    let second = n / 2000 % (20 * 86_400);
    let late = if n.is_multiple_of(50) { n.wrapping_mul(2_654_435_761) % (3 * 86_400) } else { 0 };
    let second = second + 4 * 86_400 - late;
    format!(
        "{{\"specversion\":\"1.0\",\"id\":\"{:08x}-{:04x}-4000-8000-{n:012x}\",\"source\":\"urn:fleet:{}\",\"type\":\"meter-{}\",\"subject\":\"cust-{}\",\"time\":\"2026-09-{:02}T{:02}:{:02}:{:02}Z\",\"data\":{{\"quantity\":\"{}.{:04}\"}}}}",
        n >> 16,
        n & 0xffff,
        n % 64,
        n % 8,
        n.wrapping_mul(2_654_435_761) % CUSTOMERS,
        second / 86_400 + 1,
        second / 3600 % 24,
        second / 60 % 60,
        second % 60,
        n % 10,
        n % 10_000
    )
}

fn send(address: &str, run: &Run) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = vec![0; 4096];
    while !run.ended.load(Ordering::Relaxed) {
        let first = run.sent.fetch_add(BATCH, Ordering::Relaxed);
        let events: Vec<String> = (first..first + BATCH).map(live_event).collect();
        let body = format!("[{}]", events.join(","));
        loop {
            let begun = Instant::now();
            let status = post(&mut stream, &body, &mut answer);
            if status == 200 {
                run.acknowledged_ms.lock().unwrap().push(begun.elapsed().as_secs_f64() * 1000.0);
                break;
            }
            assert_eq!(status, 429, "{}", String::from_utf8_lossy(&answer));
            run.refused.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn post(stream: &mut TcpStream, body: &str, answer: &mut [u8]) -> u16 {
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: bench\r\ncontent-type: application/cloudevents-batch+json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let count = stream.read(answer).unwrap();
    std::str::from_utf8(&answer[..count]).ok().and_then(|text| text.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
}

/// Sends an event of one customer now and then, and asks until the running charges have it: the time from its
/// acknowledgement.
fn probe(address: &str, run: &Run) {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut answer = vec![0; 4096];
    let mut count = 0;
    while !run.ended.load(Ordering::Relaxed) {
        count += 1;
        let body = format!(
            "[{{\"specversion\":\"1.0\",\"id\":\"probe-{count}\",\"source\":\"probe\",\"type\":\"probe\",\"subject\":\"cust-7\",\"time\":\"2026-09-20T00:00:00Z\",\"data\":{{\"quantity\":1}}}}]"
        );
        if post(&mut stream, &body, &mut answer) == 200 {
            let begun = Instant::now();
            let wanted = format!("\"quantity\":\"{count}\"");
            while !run.ended.load(Ordering::Relaxed) {
                let text = get(address, "/v1/running-charges?rule=energy&customer_id=cust-7");
                if text.lines().any(|line| line.contains("\"item\":\"probe\"") && line.contains(&wanted)) {
                    run.fresh_ms.lock().unwrap().push(begun.elapsed().as_secs_f64() * 1000.0);
                    break;
                }
            }
        } else {
            count -= 1;
        }
        std::thread::sleep(PROBE);
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    let _ = stream.read_to_string(&mut text);
    text
}

fn accepted(address: &str) -> usize {
    let text = get(address, "/metrics");
    let of_events = |line: &&str| line.starts_with("ratemill_ingest_events_total") && line.contains("outcome=\"accepted\"");
    text.lines().filter(of_events).filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum()
}

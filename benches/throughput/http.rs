//! HTTP: batches of 100 CloudEvents, each answered once it is durable.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ratemill_benches::Usage;

use crate::Measurement;
use crate::process::{Engine, event, project};

const BATCH: usize = 100;
const CONNECTIONS: usize = 16;

pub fn measure(events: usize) {
    let requests: Vec<Vec<u8>> = (0..events / BATCH)
        .map(|n| {
            let body: Vec<String> = (n * BATCH..(n + 1) * BATCH).map(event).collect();
            let body = format!("[{}]", body.join(","));
            format!(
                "POST /v1/events HTTP/1.1\r\nhost: bench\r\ncontent-type: application/cloudevents-batch+json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes()
        })
        .collect();
    // Epochs come, too: the figure is of a whole engine, not of its front door.
    let folder = project("[http]\nlisten = \"127.0.0.1:0\"\n[epoch]\ninterval = \"5 seconds\"\n");
    let engine = Engine::start(folder.path());
    let next = AtomicUsize::new(0);
    let (own, before) = (Usage::own(), engine.usage());
    let begun = Instant::now();
    let latencies: Vec<f64> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(|| send(&engine.address, &requests, &next))).collect();
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let after = engine.usage();
    let sender_seconds = Usage::own().cpu_seconds - own.cpu_seconds;
    engine.stop();
    Measurement {
        name: format!("HTTP, batches of {BATCH}, durable"),
        events: requests.len() * BATCH,
        seconds,
        engine_seconds: after.cpu_seconds - before.cpu_seconds,
        sender_seconds,
        latencies,
        peak_mib: after.peak_mib,
    }
    .print();
}

fn send(address: &str, requests: &[Vec<u8>], next: &AtomicUsize) -> Vec<f64> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut latencies = Vec::new();
    let mut answer = [0; 4096];
    while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
        loop {
            let begun = Instant::now();
            stream.write_all(request).unwrap();
            let count = stream.read(&mut answer).unwrap();
            let text = std::str::from_utf8(&answer[..count]).unwrap();
            if text.starts_with("HTTP/1.1 200") {
                latencies.push(begun.elapsed().as_secs_f64() * 1000.0);
                break;
            }
            assert!(text.starts_with("HTTP/1.1 429"), "{text}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    latencies
}

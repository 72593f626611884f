//! MQTT 5 at QoS 1 from a real Mosquitto, beside what the broker delivers to a subscriber that keeps nothing.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ratemill_connectors::mqtt::publish;

use ratemill_benches::Usage;

use crate::Measurement;
use crate::process::{Engine, event, project};

pub struct Broker {
    child: Child,
    pub port: u16,
    _folder: tempfile::TempDir,
}

impl Broker {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 1000\nmax_queued_messages 0\nset_tcp_nodelay true\n"
        );
        std::fs::write(folder.path().join("m.conf"), config).unwrap();
        let child = Command::new("/usr/sbin/mosquitto")
            .arg("-c")
            .arg(folder.path().join("m.conf"))
            .stderr(Stdio::null())
            .spawn()
            .expect("apt-get install mosquitto");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port, _folder: folder }
    }

    fn publish(&self, count: usize) -> f64 {
        let begun = Usage::own().cpu_seconds;
        self.publish_events((0..count).map(event));
        Usage::own().cpu_seconds - begun
    }

    /// Publishes these at QoS 1 and waits for the broker to have them.
    pub fn publish_events(&self, events: impl Iterator<Item = String>) {
        let messages: Vec<(String, Vec<u8>)> =
            events.enumerate().map(|(n, event)| (format!("meters/{}", n % 100), event.into_bytes())).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(publish(&format!("mqtt://127.0.0.1:{}", self.port), messages)).unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn measure(events: usize) {
    let broker = Broker::start();
    let mut subscriber = Command::new("mosquitto_sub")
        .args(["-p", &broker.port.to_string(), "-q", "1", "-t", "meters/#", "-C", &events.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .expect("apt-get install mosquitto-clients");
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let sender_seconds = broker.publish(events);
    subscriber.wait().unwrap();
    let name = "MQTT QoS 1, mosquitto_sub alone".to_owned();
    Measurement {
        name,
        events,
        seconds: begun.elapsed().as_secs_f64(),
        engine_seconds: f64::NAN,
        sender_seconds,
        latencies: Vec::new(),
        peak_mib: 0,
    }
    .print();

    let broker = Broker::start();
    let folder = project(&format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n[epoch]\ninterval = \"5 seconds\"\n[[mqtt]]\nname = \"m\"\nurl = \"mqtt://127.0.0.1:{}\"\nclient_id = \"bench\"\ntopics = [\"meters/#\"]\n",
        broker.port
    ));
    let engine = Engine::start(folder.path());
    std::thread::sleep(Duration::from_millis(500));
    let before = engine.usage();
    let begun = Instant::now();
    let sender_seconds = broker.publish(events);
    while accepted(&engine.address) < events {
        std::thread::sleep(Duration::from_millis(5));
    }
    let seconds = begun.elapsed().as_secs_f64();
    let after = engine.usage();
    engine.stop();
    Measurement {
        name: "MQTT QoS 1, durable".to_owned(),
        events,
        seconds,
        engine_seconds: after.cpu_seconds - before.cpu_seconds,
        sender_seconds,
        latencies: Vec::new(),
        peak_mib: after.peak_mib,
    }
    .print();
}

fn accepted(address: &str) -> usize {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find(|line| line.starts_with("ratemill_ingest_events_total{connector=\"m\",outcome=\"accepted\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

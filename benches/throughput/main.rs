//! What the release binary sustains on this machine, with the sender's share told apart.
//!
//!     cargo build --release && cargo bench --bench throughput -- http mqtt files rating start [--events N]
//!     cargo build --release && cargo bench --bench throughput -- live-http live-mqtt [--seconds 600]
//!
//! Every measurement starts `target/release/ratemill` as a user would, on a temporary folder, and reads its processor
//! time and peak memory from /proc. Ids are unique, so that nothing is a duplicate.

mod files;
mod http;
mod live;
mod mqtt;
mod process;
mod start;

fn main() {
    // Cargo passes `--bench` to harnesses.
    let mut wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut events = 1_000_000;
    if let Some(index) = wanted.iter().position(|argument| argument == "--events") {
        events = wanted.get(index + 1).and_then(|text| text.parse().ok()).expect("--events N");
        wanted.drain(index..=index + 1);
    }
    let mut seconds = 600;
    if let Some(index) = wanted.iter().position(|argument| argument == "--seconds") {
        seconds = wanted.get(index + 1).and_then(|text| text.parse().ok()).expect("--seconds N");
        wanted.drain(index..=index + 1);
    }
    if wanted.is_empty() || wanted == ["all"] {
        wanted = ["http", "mqtt", "files", "rating"].map(str::to_owned).to_vec();
    }
    println!(
        "{:<34} {:>12} {:>14} {:>10} {:>10} {:>9} {:>9} {:>9}",
        "measurement", "events/s", "per core-s", "engine s", "sender s", "p50 ms", "p99 ms", "peak MiB"
    );
    for name in wanted {
        match name.as_str() {
            "http" => http::measure(events),
            "mqtt" => mqtt::measure(events / 5),
            "files" => files::measure_capture(events),
            "rating" => files::measure_rating(events),
            "start" => start::measure(events),
            "live-http" => live::measure_http(seconds),
            "live-mqtt" => live::measure_mqtt(seconds),
            other => panic!("`{other}` is none of http, mqtt, files, rating, start, live-http, live-mqtt"),
        }
    }
}

/// One line of the table.
pub struct Measurement {
    pub name: String,
    pub events: usize,
    pub seconds: f64,
    pub engine_seconds: f64,
    pub sender_seconds: f64,
    /// Acknowledgement latencies in milliseconds, unsorted; empty where there are none.
    pub latencies: Vec<f64>,
    pub peak_mib: u64,
}

impl Measurement {
    pub fn print(mut self) {
        #[allow(clippy::cast_precision_loss)]
        let events = self.events as f64;
        self.latencies.sort_by(f64::total_cmp);
        let quantile = |share: usize| match self.latencies.len() {
            0 => "-".to_owned(),
            count => format!("{:.2}", self.latencies[(count * share / 100).min(count - 1)]),
        };
        println!(
            "{:<34} {:>12.0} {:>14.0} {:>10.2} {:>10.2} {:>9} {:>9} {:>9}",
            self.name,
            events / self.seconds,
            events / self.engine_seconds,
            self.engine_seconds,
            self.sender_seconds,
            quantile(50),
            quantile(99),
            self.peak_mib
        );
    }
}

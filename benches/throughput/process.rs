//! The engine as a process, and what the system says of it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ratemill_benches::Usage;

pub const RULE: &str = "CREATE MATERIALIZED VIEW energy WITH (window = 'month', grace = '1 day', effective_from = '2026-09-01') AS
SELECT c.customer_id, u.meter AS item, sum(u.quantity) AS quantity, graduated(sum(u.quantity), p.tiers) AS amount, c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan
GROUP BY c.customer_id, u.meter, c.currency, p.tiers
";

/// Customers of the generated usage.
pub const CUSTOMERS: usize = 20_000;

pub fn binary() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/ratemill");
    assert!(path.exists(), "build it first: cargo build --release");
    path
}

/// A project with one graduated rule over twenty thousand customers.
pub fn project(toml: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    write("ratemill.toml", toml);
    write("rules/energy.sql", RULE);
    write(
        "reference/contracts.toml",
        "key = [\"subject\"]\n[columns]\nsubject = \"text\"\ncustomer_id = \"text\"\nplan = \"text\"\ncurrency = \"text\"\nvalid_from = \"date\"\nvalid_to = \"date?\"\n",
    );
    let rows: String = (0..CUSTOMERS).map(|n| format!("cust-{n},cust-{n},p{},EUR,2026-01-01,\n", n % 5)).collect();
    write("reference/contracts.csv", &format!("subject,customer_id,plan,currency,valid_from,valid_to\n{rows}"));
    write(
        "reference/prices.toml",
        "key = [\"plan\"]\n[columns]\nplan = \"text\"\nup_to = \"decimal?\"\nunit_price = \"decimal\"\nflat_fee = \"decimal\"\n",
    );
    let rows: String = (0..5).map(|n| format!("p{n},100,0.3{n},0\np{n},,0.2{n},0\n")).collect();
    write("reference/prices.csv", &format!("plan,up_to,unit_price,flat_fee\n{rows}"));
    folder
}

/// One CloudEvent of about 230 bytes.
pub fn event(n: usize) -> String {
    format!(
        "{{\"specversion\":\"1.0\",\"id\":\"{:08x}-{:04x}-4000-8000-{:012x}\",\"source\":\"urn:fleet:{}\",\"type\":\"meter-{}\",\"subject\":\"cust-{}\",\"time\":\"2026-09-{:02}T{:02}:{:02}:{:02}Z\",\"data\":{{\"quantity\":\"{}.{:04}\"}}}}",
        n >> 16,
        n & 0xffff,
        n,
        n % 64,
        n % 8,
        n.wrapping_mul(2_654_435_761) % CUSTOMERS,
        n % 28 + 1,
        n % 24,
        n % 60,
        n / 60 % 60,
        n % 10,
        n % 10_000
    )
}

/// A running engine.
pub struct Engine {
    child: Child,
    pub address: String,
}

impl Engine {
    pub fn start(folder: &Path) -> Self {
        let mut child = Command::new(binary()).args(["run", "-C", folder.to_str().unwrap()]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening http://").expect("the engine did not start").to_owned();
        Self { child, address }
    }

    pub fn usage(&self) -> Usage {
        Usage::of(self.child.id())
    }

    /// What it holds in memory now.
    pub fn resident_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn stop(mut self) {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        self.child.wait().unwrap();
    }
}

/// Runs a command to its end, looking at it all the while.
pub fn watched(arguments: &[&str]) -> (f64, Usage) {
    let begun = std::time::Instant::now();
    let mut child = Command::new(binary()).args(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut last = Usage::default();
    loop {
        let now = Usage::of(child.id());
        if now.peak_mib > 0 {
            last = now;
        }
        if let Some(status) = child.try_wait().unwrap() {
            let mut error = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut error).unwrap();
            assert!(status.success(), "{arguments:?} failed: {error}");
            return (begun.elapsed().as_secs_f64(), last);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

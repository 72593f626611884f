//! Measurements, and what they share: `cargo build --release && cargo bench --bench throughput -- all`; `dedup` and `rules` beside it.

/// Processor time and peak memory of a process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system, all threads.
    pub cpu_seconds: f64,
    /// Most that was resident, MiB.
    pub peak_mib: u64,
}

impl Usage {
    /// Of a process, nothing where it is gone.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<u32>().ok()).map_or(0.0, f64::from);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Self { cpu_seconds: (ticks(11) + ticks(12)) / 100.0, peak_mib: peak.unwrap_or(0) / 1024 }
    }

    /// Of this one.
    #[must_use]
    pub fn own() -> Self {
        Self::of(std::process::id())
    }
}

//! Measurements: `cargo build --release && cargo bench --bench throughput -- all`.

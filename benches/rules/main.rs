//! What rules cost: rows per second of every pricing function, and many windows in one execution against one by one.
//!
//!     cargo bench --bench rules -- functions lifted [--rows N]
//!
//! One partition, in this process; every figure is the best of three runs.

mod functions;
mod lifted;

fn main() {
    // Cargo passes `--bench` to harnesses.
    let mut wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut rows = 200_000;
    if let Some(index) = wanted.iter().position(|argument| argument == "--rows") {
        rows = wanted.get(index + 1).and_then(|text| text.parse().ok()).expect("--rows N");
        wanted.drain(index..=index + 1);
    }
    if wanted.is_empty() || wanted == ["all"] {
        wanted = ["functions", "lifted"].map(str::to_owned).to_vec();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    for name in wanted {
        match name.as_str() {
            "functions" => runtime.block_on(functions::measure(rows)),
            "lifted" => runtime.block_on(lifted::measure(rows)),
            other => panic!("`{other}` is none of functions, lifted"),
        }
    }
}

/// The shortest of three runs, in seconds.
pub async fn best<F: Future<Output = ()>>(mut run: impl FnMut() -> F) -> f64 {
    let mut shortest = f64::INFINITY;
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        run().await;
        shortest = shortest.min(begun.elapsed().as_secs_f64());
    }
    shortest
}

//! How fast the index of event ids says whether an event was seen, and what it holds for that.
//!
//!     cargo bench --bench dedup -- memory --ids 100000000
//!     cargo bench --bench dedup -- disk --ids 1000000000 --folder DIR      # 25.7 GB in DIR; TMPDIR by default
//!
//! `memory`: ids come one group of submissions after the other, each hundredth again, into an index that holds all of them in
//! memory. `disk`: ids older than the horizon lie in sorted files, and new ones, each hundredth of them an old one, are looked
//! up there. One thread; keys are made beforehand, so that only the index is measured.

use std::path::Path;
use std::time::Instant;

use ratemill_benches::Usage;
use ratemill_engine::dedup::DedupIndex;
use ratemill_schemas::{EventKey, Verdict};

/// Keys of one group of submissions.
const GROUP: u64 = 20_000;
/// Each so many-th event is one that was there before.
const AGAIN: u64 = 100;
/// Keys of a sorted file.
const FILE: u64 = 125_000_000;
/// Keys that are looked up on disk.
const ASKED: u64 = 5_000_000;

fn main() {
    let mut wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let ids = option(&mut wanted, "--ids").map_or(10_000_000, |text| text.parse().expect("--ids N"));
    let folder = match option(&mut wanted, "--folder") {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.expect("a folder for the index");
    for name in wanted {
        match name.as_str() {
            "memory" => memory(folder.path(), ids),
            "disk" => disk(folder.path(), ids),
            other => panic!("`{other}` is none of memory, disk"),
        }
    }
}

fn option(arguments: &mut Vec<String>, name: &str) -> Option<String> {
    let index = arguments.iter().position(|argument| argument == name)?;
    arguments.drain(index..=index + 1).nth(1)
}

/// The key of event `n`: spread as hashes are.
fn key(n: u64) -> EventKey {
    EventKey { identity: u128::from(mixed(n)) << 64 | u128::from(mixed(!n)), content: n }
}

/// SplitMix64.
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Events `[from, to)`, each hundredth an old one in its place.
fn group(from: u64, to: u64, old: impl Fn(u64) -> u64) -> Vec<EventKey> {
    (from..to).map(|n| if n % AGAIN == 0 && n > 0 { key(old(n)) } else { key(n) }).collect()
}

/// Asks for one group after the other; returns the seconds of the clock and of the processor, and how many were there before.
fn asked(index: &mut DedupIndex, from: u64, to: u64, old: impl Fn(u64) -> u64 + Copy) -> (f64, f64, usize) {
    let (mut seconds, mut cpu, mut known) = (0.0, 0.0, 0);
    let mut first = from;
    while first < to {
        // Made together, since the processor's time is told in hundredths of a second.
        let last = to.min(first + 100 * GROUP);
        let groups: Vec<Vec<EventKey>> =
            (first..last).step_by(GROUP as usize).map(|start| group(start, last.min(start + GROUP), old)).collect();
        let (begun, before) = (Instant::now(), Usage::own());
        for keys in &groups {
            known += index.check_all(keys).unwrap().iter().filter(|verdict| **verdict == Verdict::Duplicate).count();
        }
        seconds += begun.elapsed().as_secs_f64();
        cpu += Usage::own().cpu_seconds - before.cpu_seconds;
        first = last;
    }
    (seconds, cpu, known)
}

#[allow(clippy::cast_precision_loss)]
fn report(name: &str, checks: u64, (seconds, cpu, known): (f64, f64, usize)) {
    println!(
        "{name}: {:.2} M checks/s, {:.2} M a core-second; {known} were there before",
        checks as f64 / seconds / 1e6,
        checks as f64 / cpu / 1e6
    );
}

fn memory(folder: &Path, ids: u64) {
    let (mut index, _) = DedupIndex::open(folder, 0).unwrap();
    // Each hundredth is one of those before it, which is none of the hundredths itself.
    let old = |n: u64| mixed(n) % n / AGAIN * AGAIN + 1;
    let found = asked(&mut index, 0, ids, old);
    assert_eq!(found.2 as u64, (ids - 1) / AGAIN, "an index that forgets, or that knows what never came");
    report(&format!("{ids} ids into memory"), ids, found);
    println!("  {} in memory, the process has {} MiB at most", index.len().0, Usage::own().peak_mib);
}

#[allow(clippy::cast_precision_loss)]
fn disk(folder: &Path, ids: u64) {
    let begun = Instant::now();
    for from in (0..ids).step_by(FILE as usize) {
        let keys: Vec<EventKey> = (from..ids.min(from + FILE)).map(key).collect();
        let [from, to] = [from, from + keys.len() as u64].map(|position| i64::try_from(position).unwrap());
        DedupIndex::save_aged(folder, from, to, &keys).unwrap();
        eprintln!("{to} of {ids} ids written, {:.0} s", begun.elapsed().as_secs_f64());
    }
    let bytes: u64 = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    let begun = Instant::now();
    let (mut index, known) = DedupIndex::open(folder, i64::try_from(ids).unwrap()).unwrap();
    assert_eq!(known, i64::try_from(ids).unwrap());
    println!("{ids} ids on disk: {:.1} bytes an id, opened in {:.1} s", bytes as f64 / ids as f64, begun.elapsed().as_secs_f64());
    println!("  their filters take {} MiB of memory", index.aged_memory() >> 20);
    let found = asked(&mut index, ids, ids + ASKED, |n| mixed(n) % ids);
    let again = (ids..ids + ASKED).filter(|n| n % AGAIN == 0).count();
    assert_eq!(found.2, again, "an index that forgets, or that knows what never came");
    report(&format!("{ASKED} checks"), ASKED, found);
}

//! The index against a model, through restarts, loss of power and damage.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ratemill_schemas::{EventHasher, EventKey, Verdict};

use super::DedupIndex;
use super::keeper::Step;

/// Steps that are done before the power goes.
#[derive(Debug, Clone)]
pub(super) struct Power(Arc<AtomicUsize>);

impl Default for Power {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX)))
    }
}

impl Power {
    pub(super) fn step(&self) -> std::io::Result<()> {
        let left = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| std::io::Error::other("the power is gone"))
    }

    fn lasts(&self, steps: usize) {
        self.0.store(steps, Ordering::Relaxed);
    }
}

/// Pseudo-random numbers, the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

fn key(id: u64, content: u64) -> EventKey {
    let hasher = EventHasher::new([7, 11]);
    EventKey { identity: hasher.identity("meter", &id.to_string()), content }
}

fn keys(ids: std::ops::Range<u64>) -> Vec<EventKey> {
    ids.map(|id| key(id, 1)).collect()
}

/// Lets the keeper do everything there is to do at `now`.
fn tidy(index: &mut DedupIndex, horizon: i64, now: i64) {
    let mut keeping = index.keeping(horizon);
    loop {
        match keeping.step(now).unwrap() {
            Step::Rest => break,
            Step::Joined => {}
            Step::Changed(change) => {
                index.take_over(change);
                while !index.leaving.is_empty() {
                    index.tend();
                }
            }
        }
    }
}

fn open(folder: &Path, covered: i64) -> DedupIndex {
    let (index, known) = DedupIndex::open(folder, covered).unwrap();
    assert_eq!(known, covered);
    index
}

/// Runs of `keys` each, logged at 0, 1, 2 and so on.
fn save_runs(folder: &Path, runs: u64, keys_each: u64) -> i64 {
    for run in 0..runs {
        let ids = run * keys_each..(run + 1) * keys_each;
        let [from, to] = [ids.start, ids.end].map(|position| i64::try_from(position).unwrap());
        DedupIndex::save_run(folder, from, to, i64::try_from(run).unwrap(), &keys(ids)).unwrap();
    }
    i64::try_from(runs * keys_each).unwrap()
}

fn assert_knows(index: &mut DedupIndex, ids: std::ops::Range<u64>) {
    let asked = keys(ids.clone());
    let verdicts = index.check_all(&asked).unwrap();
    assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Duplicate), "{ids:?}: {verdicts:?}");
}

#[test]
fn resends_are_told_whatever_their_age() {
    let folder = tempfile::tempdir().unwrap();
    let covered = save_runs(folder.path(), 30, 100);
    let mut index = open(folder.path(), covered);
    assert_eq!(index.len(), (3000, 0));
    for (now, on_disk) in [(5, 0), (10, 0), (11, 100), (20, 1000), (25, 1500), (100, 3000)] {
        tidy(&mut index, 10, now);
        assert_eq!(index.len(), (3000 - on_disk, on_disk), "at {now}");
        assert_knows(&mut index, 0..3000);
        assert_eq!(index.check(key(4000, 1)).unwrap(), Verdict::Accepted);
        assert_eq!(index.check(key(4000, 1)).unwrap(), Verdict::Duplicate);
        index = open(folder.path(), covered);
        assert_eq!(index.len(), (3000 - on_disk, on_disk), "at {now}, after a restart");
        assert_knows(&mut index, 0..3000);
    }
}

#[test]
fn an_id_with_another_time_is_a_conflict_before_and_after_the_horizon() {
    let hasher = EventHasher::new([7, 11]);
    let event = |id: &str, time: i128| {
        let mut content = hasher.content();
        content.text("kwh");
        content.number(Some(time));
        EventKey { identity: hasher.identity("meter", id), content: content.finish() }
    };
    let folder = tempfile::tempdir().unwrap();
    DedupIndex::save_run(folder.path(), 0, 2, 0, &[event("a", 1000), event("b", 1000)]).unwrap();
    let mut index = open(folder.path(), 2);
    for now in [0, 100] {
        tidy(&mut index, 10, now);
        let asked = [event("a", 1000), event("a", 1001), event("b", 1000), event("b", 0), event("a", 1000)];
        let (same, other) = (Verdict::Duplicate, Verdict::Conflict);
        assert_eq!(index.check_all(&asked).unwrap(), [same, other, same, other, same], "at {now}");
    }
    assert_eq!(index.len(), (0, 2));
    // In one submission, and new to the index.
    let asked = [event("c", 5), event("c", 6), event("c", 5)];
    assert_eq!(index.check_all(&asked).unwrap(), [Verdict::Accepted, Verdict::Conflict, Verdict::Duplicate]);
}

#[test]
fn what_was_not_kept_is_forgotten_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut index = open(folder.path(), 0);
    assert!(index.check_all(&keys(0..500)).unwrap().iter().all(|verdict| *verdict == Verdict::Accepted));
    index.forget(keys(100..200).into_iter());
    assert_eq!(index.len(), (400, 0));
    assert_knows(&mut index, 0..100);
    assert_knows(&mut index, 200..500);
    assert!(index.check_all(&keys(100..200)).unwrap().iter().all(|verdict| *verdict == Verdict::Accepted));
}

#[test]
fn random_work_agrees_with_a_model() {
    for seed in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let mut dice = Dice(seed);
        let mut model: HashMap<u64, u64> = HashMap::new();
        let mut index = open(folder.path(), 0);
        let (mut position, mut now) = (0, 0);
        // Accepted since the last epoch: the usage log would hold them.
        let mut fresh: Vec<EventKey> = Vec::new();
        for _ in 0..600 {
            match dice.roll(10) {
                0..6 => {
                    let most = if dice.roll(20) == 0 { 3000 } else { 60 };
                    let asked: Vec<(u64, u64)> = (0..dice.roll(most)).map(|_| (dice.roll(30_000), dice.roll(8) / 7)).collect();
                    let verdicts = index.check_all(&asked.iter().map(|(id, content)| key(*id, *content)).collect::<Vec<_>>()).unwrap();
                    for ((id, content), verdict) in asked.into_iter().zip(verdicts) {
                        let expected = match model.get(&id) {
                            None => Verdict::Accepted,
                            Some(known) if *known == content => Verdict::Duplicate,
                            Some(_) => Verdict::Conflict,
                        };
                        assert_eq!(verdict, expected, "seed {seed}, id {id}");
                        if expected == Verdict::Accepted {
                            model.insert(id, content);
                            fresh.push(key(id, content));
                        }
                    }
                }
                6..8 if !fresh.is_empty() => {
                    let from = position;
                    position += i64::try_from(fresh.len()).unwrap();
                    DedupIndex::save_run(folder.path(), from, position, now, &fresh).unwrap();
                    fresh.clear();
                    now += i64::try_from(dice.roll(5)).unwrap();
                }
                8 => {
                    tidy(&mut index, 64, now);
                    // The keeper keeps its own list of files: in the engine there is only one.
                    index.tend();
                }
                _ => {
                    index = open(folder.path(), position);
                    index.insert_all(fresh.iter().copied());
                }
            }
            assert_eq!(index.len().0 + index.len().1, model.len(), "seed {seed}");
        }
        assert!(index.len().1 > 1000, "seed {seed}: {:?}", index.len());
    }
}

#[test]
fn keys_are_known_while_they_move() {
    let folder = tempfile::tempdir().unwrap();
    let covered = save_runs(folder.path(), 4, 6000);
    let mut index = open(folder.path(), covered);
    let Step::Changed(change) = index.keeping(0).step(100).unwrap() else { panic!("nothing aged") };
    assert_knows(&mut index, 0..24_000);
    index.take_over(change);
    let mut before = index.len().0;
    while !index.leaving.is_empty() {
        assert_knows(&mut index, 0..24_000);
        index.tend();
        assert!(index.len().0 < before && before - index.len().0 <= super::LEAVE_AT_ONCE);
        before = index.len().0;
    }
    assert_eq!(index.len(), (0, 24_000));
    assert_knows(&mut index, 0..24_000);
}

/// What a power cut may leave of files that were not synced.
fn tear_unnamed_files(folder: &Path) {
    for found in std::fs::read_dir(folder).unwrap() {
        let path = found.unwrap().path();
        if path.extension().unwrap() == "tmp" {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
}

#[test]
fn the_power_may_go_before_every_step() {
    let horizon = 40;
    // 80 runs: some age, some are joined, and what has aged is merged.
    let original = tempfile::tempdir().unwrap();
    let covered = save_runs(original.path(), 80, 20);
    let (mut steps, mut whole) = (0, false);
    while !whole {
        let folder = tempfile::tempdir().unwrap();
        for found in std::fs::read_dir(original.path()).unwrap() {
            let found = found.unwrap();
            std::fs::hard_link(found.path(), folder.path().join(found.file_name())).unwrap();
        }
        let mut index = open(folder.path(), covered);
        index.files.power.lasts(steps);
        let mut keeping = index.keeping(horizon);
        let mut now = 40;
        while now <= 110 {
            match keeping.step(now) {
                Ok(Step::Rest) => now += 10,
                Ok(Step::Joined) => {}
                Ok(Step::Changed(change)) => index.take_over(change),
                Err(_) => break,
            }
            while !index.leaving.is_empty() {
                index.tend();
            }
        }
        whole = now > 110;
        // The process itself, when only the disk failed, and the next one.
        assert_knows(&mut index, 0..1600);
        drop((keeping, index));
        tear_unnamed_files(folder.path());
        for _ in 0..2 {
            let mut index = open(folder.path(), covered);
            assert_eq!(index.len().0 + index.len().1, 1600, "after {steps} steps");
            assert_knows(&mut index, 0..1600);
            assert_eq!(index.check(key(5000, 1)).unwrap(), Verdict::Accepted);
            tidy(&mut index, horizon, 90);
            assert_knows(&mut index, 0..1600);
        }
        steps += 1;
    }
    assert!(steps > 60, "{steps} steps");
}

#[test]
fn damage_anywhere_is_found_before_it_is_believed() {
    let original = tempfile::tempdir().unwrap();
    let covered = save_runs(original.path(), 4, 500);
    tidy(&mut open(original.path(), covered), 2, 4);
    for found in std::fs::read_dir(original.path()).unwrap() {
        let name = found.unwrap().file_name();
        let bytes = std::fs::read(original.path().join(&name)).unwrap();
        let steps = bytes.len() / 97 + 1;
        for at in (0..bytes.len()).step_by(steps) {
            for truncated in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                for other in std::fs::read_dir(original.path()).unwrap() {
                    let other = other.unwrap();
                    std::fs::copy(other.path(), folder.path().join(other.file_name())).unwrap();
                }
                let mut damaged = bytes.clone();
                if truncated {
                    damaged.truncate(at);
                } else {
                    damaged[at] ^= 0x10;
                }
                std::fs::write(folder.path().join(&name), damaged).unwrap();
                let (mut index, known) = DedupIndex::open(folder.path(), covered).unwrap();
                // Bytes that nothing reads are not missed.
                if known == covered {
                    assert_knows(&mut index, 0..2000);
                    assert!(!truncated, "{name:?} cut at {at}");
                } else {
                    index.clear().unwrap();
                    assert_eq!(index.len(), (0, 0));
                }
            }
        }
    }
}

#[test]
fn a_block_that_goes_bad_stops_the_lookup_and_the_next_start_rebuilds() {
    let folder = tempfile::tempdir().unwrap();
    let covered = save_runs(folder.path(), 8, 1000);
    let mut index = open(folder.path(), covered);
    tidy(&mut index, 0, 100);
    let aged = index.files.list().unwrap();
    assert_eq!(aged.len(), 1);
    let path = index.files.path(aged[0].1, aged[0].0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 + 50] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let failed = index.check_all(&keys(0..8000)).unwrap_err();
    assert!(std::error::Error::source(&failed).is_none_or(|cause| cause.to_string().contains("rebuilt")), "{failed}");
    let (_, known) = DedupIndex::open(folder.path(), covered).unwrap();
    assert_eq!(known, 0);
}

#[test]
fn gaps_and_what_lies_beyond_the_lake_are_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    DedupIndex::save_run(folder.path(), 0, 10, 1, &keys(0..10)).unwrap();
    DedupIndex::save_run(folder.path(), 20, 30, 1, &keys(20..30)).unwrap();
    let (_, known) = DedupIndex::open(folder.path(), 30).unwrap();
    assert_eq!(known, 10);
    // The lake was put back to position 5: what came later was lost with it, and has to be accepted again.
    let (mut index, known) = DedupIndex::open(folder.path(), 5).unwrap();
    assert_eq!(known, 0);
    assert_eq!(index.check(key(7, 1)).unwrap(), Verdict::Accepted);
    assert!(index.files.list().unwrap().is_empty());
}

#[test]
fn a_rebuild_writes_both_kinds_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let _ = DedupIndex::open(folder.path(), 0).unwrap();
    let twice: Vec<EventKey> = keys(0..500).into_iter().chain(keys(0..10)).collect();
    DedupIndex::save_aged(folder.path(), 0, 500, &twice).unwrap();
    DedupIndex::save_run(folder.path(), 500, 800, 50, &keys(500..800)).unwrap();
    let mut index = open(folder.path(), 800);
    assert_eq!(index.len(), (300, 500));
    assert_knows(&mut index, 0..800);
}

#[test]
fn the_thread_moves_keys_and_ends_with_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let covered = save_runs(folder.path(), 40, 100);
    let mut index = open(folder.path(), covered);
    index.keep(0).unwrap();
    while index.len().0 > 0 {
        index.tend();
        std::thread::yield_now();
    }
    assert_knows(&mut index, 0..4000);
    drop(index);
    assert_knows(&mut open(folder.path(), covered), 0..4000);
}

#[test]
fn identities_that_look_like_nothing_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let asked: Vec<EventKey> =
        [0, 1, u128::MAX, u128::MAX - 1, 1 << 64, 2 << 64].map(|identity| EventKey { identity, content: 0 }).to_vec();
    DedupIndex::save_run(folder.path(), 0, 6, 0, &asked).unwrap();
    let mut index = open(folder.path(), 6);
    for now in [0, 10] {
        tidy(&mut index, 1, now);
        assert!(index.check_all(&asked).unwrap().iter().all(|verdict| *verdict == Verdict::Duplicate));
    }
    assert_eq!(index.len(), (0, 6));
}

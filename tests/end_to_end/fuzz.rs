//! Rules and reference files that nobody would write: mutated, spliced and grown out of those that somebody did. Whatever
//! the text, the check answers within seconds and bounded memory, and a rule that passes it gives charges or an error.
//!
//! `RATEMILL_SEED` and `RATEMILL_RUNS` choose the cases; a case that fails is printed and kept in
//! `target/tmp/fuzz_case.txt`, where it also is when the process broke off.

mod corpus;
mod mutate;
mod shapes;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use datafusion::datasource::MemTable;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use ratemill_rules::session::{self, SessionLimits};
use ratemill_rules::{Diagnostics, Evaluator, ReferenceData, RuleProject};
use ratemill_schemas::time::parse_instant;

use corpus::Corpus;
use mutate::Mutator;

const CASES_A_RUN: u64 = 100;

/// The stack of the thread that `ratemill` waits in.
const STACK_BYTES: usize = 8 << 20;

/// A check that takes longer, or planning that does not come to rest, is a fault.
const CHECK_SECONDS_MAX: u64 = 10;

/// Time for a query on no usage; what takes longer is given up.
const EVALUATION_SECONDS: u64 = 5;

/// What one case may add to the memory of the process.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// Rules and reference files, one of them strange.
#[derive(Debug, Clone)]
struct Case {
    corpus: Arc<Corpus>,
    rules: Vec<(String, String)>,
    reference: Vec<(String, String, String)>,
    /// The strange one.
    text: String,
}

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Refused,
    Failed,
    Rated,
    GivenUp,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn kept() -> PathBuf {
    let folder = PathBuf::from(option_env!("CARGO_TARGET_TMPDIR").unwrap_or("/tmp"));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join("fuzz_case.txt")
}

/// Resident memory of this process.
fn memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

impl Case {
    fn next(corpora: &[Arc<Corpus>], pool: &mutate::Pool, random: &mut StdRng) -> Self {
        let corpus = Arc::clone(corpora.choose(random).unwrap());
        let (mut rules, mut reference) = (corpus.sound.clone(), corpus.reference.clone());
        let (name, text) = corpus.rules.choose(random).unwrap().clone();
        let mut mutator = Mutator { random, pool };
        let kind = mutator.random.random_range(0..10);
        let strange = if kind < 2 && !reference.is_empty() {
            let index = mutator.random.random_range(0..reference.len());
            let (_, declaration, csv) = &mut reference[index];
            let file = if mutator.random.random_bool(0.5) { declaration } else { csv };
            *file = mutator.mutated(file);
            rules.push((name, text));
            file.clone()
        } else {
            let text = if kind < 5 { shapes::grown(mutator.random) } else { mutator.mutated(&text) };
            // A rule of the corpus may read the others.
            rules.retain(|(known, _)| *known != name);
            rules.push((name, text.clone()));
            text
        };
        Self { corpus, rules, reference, text: strange }
    }

    /// Checks the case and, when it is sound, rates a window without usage.
    fn run(self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut diagnostics = Diagnostics::default();
        let reference = ReferenceData::from_files(self.reference, "project", &mut diagnostics);
        let usage = Arc::clone(&self.corpus.usage);
        let name = self.rules.last().map(|(name, _)| name.clone()).unwrap_or_default();
        let project = match runtime.block_on(RuleProject::check(self.rules, reference, Arc::clone(&usage), diagnostics)) {
            Ok((project, warnings)) => {
                let _ = warnings.render(false);
                Arc::new(project)
            }
            Err(findings) => {
                assert!(findings.has_errors());
                let _ = findings.render(false);
                return Outcome::Refused;
            }
        };
        let limits = SessionLimits { partitions: 1, memory_bytes: 256 << 20, ..SessionLimits::default() };
        let table = MemTable::try_new(Arc::clone(usage.stored()), vec![vec![]]).unwrap();
        let evaluator = Evaluator::new(session::runtime(&limits).unwrap(), limits, Arc::clone(&project), Arc::new(table));
        let at = parse_instant("2026-06-15T12:00:00Z").unwrap();
        let mut outcome = Outcome::Rated;
        // A rule that reads itself rates every window since it came into force.
        for rule in project.rules.iter().filter(|rule| rule.file == name && !rule.reads_itself()) {
            let Ok(mut windows) = rule.windows_between(&project.reference, at, at + 1) else { continue };
            let end = windows.iter().map(|window| window.end).max().unwrap_or(at);
            windows.extend(rule.windows_between(&project.reference, end, end + 1).unwrap_or_default());
            windows.sort_unstable();
            windows.dedup();
            windows.truncate(3);
            let rated = runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(EVALUATION_SECONDS), evaluator.evaluate(rule, &windows)).await
            });
            outcome = match rated {
                Ok(Ok(charges)) => {
                    assert_eq!(charges.len(), windows.len());
                    outcome
                }
                Ok(Err(error)) => {
                    assert!(!error.to_string().is_empty());
                    Outcome::Failed
                }
                Err(_) => Outcome::GivenUp,
            };
        }
        outcome
    }
}

/// Seconds of processor that a thread of this process has used.
fn processor_seconds(thread: &Path) -> u64 {
    let stat = std::fs::read_to_string(Path::new("/proc").join(thread).join("stat")).unwrap_or_default();
    let times = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    times.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() / 100
}

/// Runs a case on a thread of its own; the outcome, or what is wrong with it.
fn outcome(case: Case) -> Result<Outcome, String> {
    let (started, thread) = mpsc::channel();
    let (sender, receiver) = mpsc::channel();
    let before = memory();
    let running = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let _ = started.send(std::fs::read_link("/proc/thread-self").unwrap_or_default());
        let _ = sender.send(case.run());
    });
    let thread = thread.recv().unwrap();
    let start = Instant::now();
    // Time that other processes take does not count, up to a point.
    let limit = CHECK_SECONDS_MAX + EVALUATION_SECONDS;
    while processor_seconds(&thread) < limit && start.elapsed().as_secs() < 10 * limit {
        match receiver.recv_timeout(Duration::from_secs(1)) {
            Ok(outcome) => {
                running.unwrap().join().unwrap();
                return match memory().saturating_sub(before) {
                    grown if grown > MEMORY_BYTES_MAX => Err(format!("took {grown} bytes")),
                    _ => Ok(outcome),
                };
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err("panicked".to_owned()),
        }
    }
    Err(format!("took more than {limit} s"))
}

#[test]
fn no_text_breaks_the_check() {
    let (runs, seed) = (number("RATEMILL_RUNS", 10), number("RATEMILL_SEED", 1));
    let corpora = corpus::all();
    let pool = mutate::Pool::of(&corpora);
    let kept = kept();
    let (mut counts, mut slowest) = ([0_u64; 4], (Duration::ZERO, 0));
    for case in 0..runs * CASES_A_RUN {
        let mut random = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(case));
        let next = Case::next(&corpora, &pool, &mut random);
        let text = next.text.clone();
        std::fs::write(&kept, &text).unwrap();
        let start = Instant::now();
        match outcome(next) {
            Ok(outcome) => counts[outcome as usize] += 1,
            Err(fault) => {
                let shown: String = text.chars().take(4000).collect();
                panic!("case {case} of seed {seed} {fault}; all of it is in {}:\n{shown}", kept.display());
            }
        }
        slowest = slowest.max((start.elapsed(), case));
    }
    let _ = std::fs::remove_file(kept);
    let [refused, failed, rated, given_up] = counts;
    eprintln!("{refused} refused, {failed} failed, {rated} rated, {given_up} given up; the slowest took {slowest:?}");
    // Mutations that never pass would test the parser only.
    assert!(refused > 0 && rated > 0);
}

/// Texts that once broke it.
#[test]
fn what_broke_the_check_once() {
    let corpora = corpus::all();
    for (name, text) in shapes::once_broken() {
        let corpus = Arc::clone(&corpora[0]);
        let (rules, reference) = (vec![(name.to_owned(), text.clone())], corpus.reference.clone());
        let found = outcome(Case { corpus, rules, reference, text });
        assert!(found.is_ok(), "{name}: {found:?}");
    }
}

//! Power cuts: every operation on files of a real run is recorded, and replayed up to any point onto a disk that keeps
//! only what was synced by then. The engine must start from it with every event that it had acknowledged.

mod disk;
mod trace;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::disk::Disk;
use self::trace::{Op, parse, traced};
use crate::engine::{report, wait};
use crate::project::Project;
use crate::scenario::{By, Run, Scenario, succeeds};

/// What a run did, and what it had told its senders.
struct Recording {
    scenario: Scenario,
    ops: Vec<Op>,
}

/// Records a run that is killed once, when frames are written and not synced.
fn record() -> Recording {
    let scenario = Scenario::load("calls");
    let project = scenario.project("", "");
    let root = project.path().canonicalize().unwrap();
    let files: Rc<RefCell<Vec<PathBuf>>> = Rc::default();
    let (known, folder) = (Rc::clone(&files), root.clone());
    let command = move || {
        let file = folder.join(format!("trace.{}", known.borrow().len()));
        known.borrow_mut().push(file.clone());
        traced(&file)
    };
    let deaths = Run::new(&project, &[("RATEMILL_FAIL_AT", "log.written:2".to_owned())]).by(command).play(&scenario);
    assert_eq!(deaths, 1);
    let mut ops = Vec::new();
    for file in files.borrow().iter() {
        let mut of_file = None;
        wait("the recording is whole", || {
            of_file = parse(&std::fs::read_to_string(file).unwrap(), &root);
            of_file.is_some()
        });
        ops.extend(of_file.unwrap());
    }
    // The log and the lake; the rest is the test's own.
    ops.retain(|op| path_of(op).is_none_or(|path| path == Path::new("") || path.starts_with("log") || path.starts_with("lake")));
    Recording { scenario, ops }
}

fn path_of(op: &Op) -> Option<&Path> {
    match op {
        Op::Open { path, .. } | Op::Write { path, .. } | Op::Truncate { path, .. } | Op::Sync { path } => Some(path),
        Op::Rename { to: path, .. } | Op::Link { to: path, .. } | Op::Unlink { path } | Op::MakeFolder { path } => Some(path),
        Op::Acknowledged => None,
    }
}

impl Recording {
    /// Cuts the power before operation `end`; says what was lost. Syncs that `is_out` picks are taken out.
    fn cut(&self, end: usize, luck: Option<u64>, is_out: &dyn Fn(&Path) -> bool) -> Result<(), String> {
        let mut disk = Disk::default();
        let ops = &self.ops[..end];
        for op in ops {
            if !matches!(op, Op::Sync { path } if is_out(path)) {
                disk.apply(op);
            }
        }
        let project = self.scenario.project("", "");
        let mut random = luck.map(StdRng::seed_from_u64);
        disk.restore(project.path(), random.as_mut());
        let told = ops.iter().filter(|op| matches!(op, Op::Acknowledged)).count();
        self.check(&project, told)
    }

    fn check(&self, project: &Project, told: usize) -> Result<(), String> {
        let nothing = project.write("nothing.ndjson", "");
        succeeds(&["rate", "-C", project.text(), "--usage", nothing.to_str().unwrap(), "--to", "2040-01-01"], &[])?;
        let stored = succeeds(&["sql", "-C", project.text(), "-c", "SELECT id FROM usage", "--format", "csv"], &[])?;
        let stored: Vec<&str> = stored.lines().skip(1).collect();
        let acknowledged = self.scenario.parts.iter().filter(|part| part.by == By::Http).take(told);
        for event in acknowledged.flat_map(|part| &part.events) {
            let id = event["id"].as_str().unwrap();
            if !id.starts_with('v') && !stored.contains(&id) {
                return Err(format!("{id} was acknowledged, and is lost"));
            }
        }
        // Everything is sent again: nothing is charged twice, and nothing is missing.
        self.scenario.rate(project, &[])?;
        self.scenario.books(project)
    }
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let runs: usize = std::env::var("RATEMILL_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(10);
    let recording = record();
    let answers: Vec<usize> =
        (0..recording.ops.len()).filter(|op| matches!(recording.ops[*op], Op::Acknowledged)).map(|op| op + 1).collect();
    assert_eq!(answers.len(), recording.scenario.parts.iter().filter(|part| part.by == By::Http).count());
    let syncs = recording.ops.iter().filter(|op| matches!(op, Op::Sync { .. })).count();
    assert!(syncs > 50, "only {syncs} syncs were recorded");

    let length = recording.ops.len();
    let mut random = StdRng::seed_from_u64(3);
    let mut cuts: Vec<usize> = if runs >= 50 { (0..=length).collect() } else { (0..16).map(|_| random.random_range(0..=length)).collect() };
    cuts.extend(answers);
    cuts.push(length);
    let work: Mutex<Vec<(usize, Option<u64>)>> =
        Mutex::new(cuts.iter().map(|cut| (*cut, (*cut % 2 == 1).then_some(*cut as u64))).collect());
    let (recording, cuts) = (&recording, cuts.len());
    let worker = || {
        loop {
            let Some((cut, luck)) = work.lock().unwrap().pop() else { return };
            if let Err(lost) = recording.cut(cut, luck, &|_| false) {
                panic!("power cut before operation {cut} of {length} ({luck:?}): {lost}\n{:?}", shown(&recording.ops, cut));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    report(&format!("power cut: {cuts} of {length} moments of a run with {syncs} syncs, 0 lost, 0 doubled"));

    // The same with a kind of sync taken out must lose something, else this test would see no missing sync.
    let dedup = Path::new("log/dedup");
    let is_log = |path: &Path| path.extension().is_some_and(|extension| extension == "log");
    let is_folder = |path: &Path| path.extension().is_none();
    type Kind<'k> = (&'k str, bool, &'k dyn Fn(&Path) -> bool);
    let kinds: [Kind<'_>; 7] = [
        ("frames of the log", true, &|path| is_log(path)),
        ("names of segments", true, &|path| path == Path::new("log")),
        ("names of log and lake", true, &|path| path == Path::new("")),
        ("files of the lake", true, &|path| path.starts_with("lake") && !is_folder(path)),
        ("names of the lake's files", true, &|path| path.starts_with("lake") && is_folder(path)),
        ("commits of usage", true, &|path| path.starts_with("lake/usage/_delta_log")),
        ("event ids, which can be made again", false, &|path| path.starts_with(dedup)),
    ];
    for (kind, must_lose, is_out) in kinds {
        let ends = recording.ops.iter().enumerate().filter(|(_, op)| matches!(op, Op::Acknowledged)).map(|(op, _)| op + 1);
        let losses = ends.rev().chain([length]).find_map(|end| recording.cut(end, None, is_out).err());
        assert_eq!(losses.is_some(), must_lose, "without syncs of {kind}: {losses:?}");
        report(&format!("power cut: without syncs of {kind}: {}", losses.as_deref().map_or("nothing is lost", first_line)));
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// The operations before a cut, without the bytes.
fn shown(ops: &[Op], cut: usize) -> Vec<String> {
    let shown = |op: &Op| format!("{op:?}").chars().take(120).collect();
    ops[cut.saturating_sub(12)..cut].iter().map(shown).collect()
}

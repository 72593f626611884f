//! An object store that fails requests, delays them, loses answers and repeats requests: nothing is lost or doubled.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::engine::{Engine, binary, report, try_request};
use crate::project::Project;
use crate::scenario::{Scenario, settled_at};

/// Of a thousand requests, so many fail: a run has some hundreds.
const FAULTS_PERMILLE: [usize; 3] = [5, 15, 40];

/// No run takes so long, unless the engine is stuck.
const PATIENCE: Duration = Duration::from_secs(600);

fn log_of(project: &Project) -> String {
    std::fs::read_to_string(project.path().join("engine.stderr")).unwrap_or_default()
}

/// One seed: a live engine, or the same usage by a command, again and again until it succeeds.
fn run(scenario: &Scenario, seed: usize, starts: &AtomicUsize) -> Project {
    let project = scenario.project(if seed.is_multiple_of(4) { "fold = false\n" } else { "" }, "");
    let faults = |attempt: usize| {
        starts.fetch_add(1, Ordering::Relaxed);
        // The more often it had to start, the better the store becomes.
        let permille = FAULTS_PERMILLE[seed % FAULTS_PERMILLE.len()] / (1 + attempt / 4);
        [("RATEMILL_STORE_FAULTS".to_owned(), format!("{}:{permille}", seed * 1000 + attempt))]
    };
    if seed.is_multiple_of(5) {
        let attempts = (0..100).find(|attempt| scenario.rate(&project, &faults(*attempt)).is_ok());
        assert!(attempts.is_some(), "seed {seed}");
        return project;
    }
    let begun = Instant::now();
    let (mut attempt, mut position, mut engine) = (0, 0, None::<Engine>);
    for part in &scenario.parts {
        let body = serde_json::to_vec(&part.events).unwrap();
        let mut is_acknowledged = false;
        position += part.records;
        while !is_acknowledged || settled_at(&project.path().join("lake/epochs")) < Some(position) {
            assert!(begun.elapsed() < PATIENCE, "seed {seed} does not end:\n{}", log_of(&project));
            if engine.as_mut().is_none_or(|engine| engine.ended().is_some()) {
                engine = Engine::try_start(std::process::Command::new(binary()), project.path(), &faults(attempt)).ok();
                attempt += 1;
                continue;
            }
            if let Some(engine) = engine.as_ref().filter(|_| !is_acknowledged) {
                let headers = [("content-type", "application/cloudevents-batch+json")];
                let answer = try_request(&engine.address, "POST", "/v1/events", &headers, &body);
                is_acknowledged = answer.is_some_and(|(status, _)| status == 200);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    if let Some(mut engine) = engine {
        engine.signal("TERM");
        engine.wait_for_end();
    }
    project
}

#[test]
fn a_store_that_fails_loses_and_doubles_nothing() {
    let runs: usize = std::env::var("RATEMILL_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(10).max(50);
    let first: usize = std::env::var("RATEMILL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let scenario = Scenario::load("calls");
    let (next, starts, losses) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        loop {
            let run_number = next.fetch_add(1, Ordering::Relaxed);
            if run_number >= runs {
                return;
            }
            let seed = first + run_number;
            let project = run(&scenario, seed, &starts);
            if let Err(wrong) = scenario.books(&project) {
                losses.lock().unwrap().push(format!("seed {seed}: {wrong}\n{}", log_of(&project)));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = [scope.spawn(worker), scope.spawn(worker)];
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    let losses = losses.into_inner().unwrap();
    report(&format!(
        "store faults: {runs} seeded runs from seed {first}, {} starts of the program, {} lost or doubled",
        starts.into_inner(),
        losses.len()
    ));
    assert!(losses.is_empty(), "{}", losses.join("\n"));
}

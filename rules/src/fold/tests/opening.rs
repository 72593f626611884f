//! What was before the windows: late events, stretches that are not told apart any more, states that are merged and written.

use super::*;

const LEVELS: &str = ", fan_out = 'allowed', carry = 'subject, meter' AS WITH levels AS (\
    SELECT o.subject, o.time, o.quantity FROM opening o WHERE o.meter = 'level' \
    UNION ALL SELECT u.subject, u.time, u.quantity FROM usage u WHERE u.meter = 'level') \
    SELECT l.subject AS customer_id, 'Level' AS item, 'EUR' AS currency, sum(l.quantity) AS amount, min(l.time) AS since \
    FROM levels l GROUP BY l.subject";

struct Levels {
    project: Arc<RuleProject>,
    fold: Arc<Fold>,
    windows: Vec<Window>,
    lines: Vec<String>,
}

impl Levels {
    async fn new() -> Self {
        let project = project(&[("rated", LEVELS)]).await;
        let fold = fold(&project, "rated").await.unwrap();
        let windows = months("2026-02-01T00:00:00Z", "2026-06-01T00:00:00Z", &project, "rated");
        let lines = [
            "s1 level 2026-01-05T00:00:00Z 1",
            "s1 level 2025-01-05T00:00:00Z 2",
            "s2 level 2026-02-01T00:00:00Z 4",
            "s1 other 2026-01-06T00:00:00Z 1000",
            "s1 level 2026-03-31T23:59:59Z 8",
            "s1 level 2026-04-10T00:00:00Z 16",
            // The later of two at one time is the one with the higher id.
            "s3 level 2026-03-10T00:00:00Z 32",
            "s3 level 2026-03-10T00:00:00Z 64",
            // Late: the openings of March, and of none.
            "s1 level 2026-02-28T00:00:00Z 128",
            "s2 level 2026-01-31T00:00:00Z 256",
        ];
        Self { project, fold, windows, lines: lines.map(str::to_owned).to_vec() }
    }

    fn usage(&self, first: usize, count: usize) -> RecordBatch {
        decoded(&self.project.usage, &events(&self.lines[first..first + count].join("\n")), first)
    }

    /// What the windows come to with the first events, window by window, by reading them.
    async fn read(&self, count: usize, windows: &[Window]) -> String {
        shown(&evaluator(&self.project, &self.usage(0, count)).evaluate(self.fold.rule(), windows).await)
    }

    async fn folded(&self, state: &FoldState, windows: &[Window]) -> String {
        let nothing = evaluator(&self.project, &self.usage(0, 0));
        shown(&state.evaluate(windows, &nothing).await)
    }
}

#[tokio::test]
async fn a_window_opens_with_the_last_event_before_it_whenever_that_comes() {
    let levels = Levels::new().await;
    let open = levels.fold.open(&levels.windows).unwrap();
    let mut state = levels.fold.state();
    for count in 1..=levels.lines.len() {
        state.fold(&levels.usage(count - 1, 1), &open).await.unwrap();
        assert_eq!(levels.folded(&state, &levels.windows).await, levels.read(count, &levels.windows).await, "{count} events");
    }
    let all = levels.read(levels.lines.len(), &levels.windows).await;
    assert_eq!(
        all,
        "s1: 129 2026-01-05T00:00:00Z, s2: 260 2026-01-31T00:00:00Z | s1: 136 2026-02-28T00:00:00Z, s2: 4 2026-02-01T00:00:00Z, \
         s3: 96 2026-03-10T00:00:00Z | s1: 24 2026-03-31T23:59:59Z, s2: 4 2026-02-01T00:00:00Z, s3: 64 2026-03-10T00:00:00Z | \
         s1: 16 2026-04-10T00:00:00Z, s2: 4 2026-02-01T00:00:00Z, s3: 64 2026-03-10T00:00:00Z"
    );
    // After a restart, and from two states.
    let bytes = state.encode().unwrap();
    assert_eq!(levels.folded(&FoldState::decode(&levels.fold, &bytes).unwrap(), &levels.windows).await, all);
    let mut states = [levels.fold.state(), levels.fold.state()];
    for index in 0..levels.lines.len() {
        states[index % 2].fold(&levels.usage(index, 1), &open).await.unwrap();
    }
    let nothing = evaluator(&levels.project, &levels.usage(0, 0));
    assert_eq!(shown(&states[0].evaluate_with(&states[1], &levels.windows, &nothing).await), all);
    let [mut one, other] = states;
    one.merge(other).await.unwrap();
    assert_eq!(levels.folded(&one, &levels.windows).await, all);
}

#[tokio::test]
async fn what_is_before_all_open_windows_is_one_row_a_key() {
    let levels = Levels::new().await;
    let count = levels.lines.len();
    let (closed, open) = levels.windows.split_at(2);
    let mut state = levels.fold.state();
    state.fold(&levels.usage(0, count), &levels.fold.open(&levels.windows).unwrap()).await.unwrap();
    let before = state.size();
    state.drop_windows(closed);
    state.open_from(open[0].start).unwrap();
    assert!(state.size() < before, "{} of {before}", state.size());
    assert!(state.opens(open[0].start) && !state.opens(closed[1].start));
    let expected = levels.read(count, open).await;
    assert_eq!(levels.folded(&state, open).await, expected);
    // A window that has passed cannot be told; whoever asks reads it.
    assert!(levels.folded(&state, closed).await.contains("is not told apart any more"));
    let state = FoldState::decode(&levels.fold, &state.encode().unwrap()).unwrap();
    assert_eq!(levels.folded(&state, open).await, expected);
    // One that is late for windows that have passed may still open a later one.
    let mut delta = levels.fold.state();
    delta
        .fold(&decoded(&levels.project.usage, &events("s2 level 2026-02-20T00:00:00Z 512"), count), &levels.fold.open(open).unwrap())
        .await
        .unwrap();
    let mut merged = state.clone();
    merged.merge(delta).await.unwrap();
    assert!(levels.folded(&merged, open).await.contains("s2: 512 2026-02-20T00:00:00Z"), "{}", levels.folded(&merged, open).await);
}

#[tokio::test]
async fn a_changed_event_is_forgotten_with_all_of_its_subject() {
    let levels = Levels::new().await;
    let mut state = levels.fold.state();
    state.fold(&levels.usage(0, levels.lines.len()), &levels.fold.open(&levels.windows).unwrap()).await.unwrap();
    let is = |wanted: &'static str| move |source: &str, id: &str| source == "test" && id == wanted;
    // Another one of its stretch has the last word: nothing of it is in the state.
    assert_eq!(state.forget_openings(is("e6")).unwrap(), Forgotten::Nothing);
    let of = BTreeSet::from(["s1".to_owned()]);
    assert_eq!(state.forget_openings(is("e4")).unwrap(), Forgotten::Subjects(of));
    let without = levels.folded(&state, &levels.windows[3..]).await;
    assert_eq!(without, "s2: 4 2026-02-01T00:00:00Z, s3: 64 2026-03-10T00:00:00Z");
    for index in [0, 1, 3, 5, 8] {
        state.open_with(&levels.usage(index, 1)).unwrap();
    }
    assert!(levels.folded(&state, &levels.windows[2..3]).await.starts_with("s1: 144 2026-02-28T00:00:00Z"));
}

/// What cannot be told from the events by themselves is said to be so.
#[tokio::test]
async fn opening_that_is_joined_with_events_is_read() {
    let charge = "u.subject AS customer_id, 'Calls' AS item, 'EUR' AS currency";
    for (from, expected) in [
        (
            "usage u JOIN opening o ON o.subject = u.subject",
            "events are joined with opening, which a late event can change (what reads both by UNION ALL is folded)",
        ),
        (
            "opening o FULL JOIN usage u ON o.subject = u.subject",
            "opening, which a late event can change (what reads both by UNION ALL is folded) is joined with events that may be missing (an outer join)",
        ),
    ] {
        let query = format!(
            ", fan_out = 'allowed', carry = 'subject' AS SELECT {charge}, sum(u.quantity) - max(o.quantity) AS amount FROM {from} GROUP BY u.subject"
        );
        let project = project(&[("rated", &query)]).await;
        assert_eq!(fold(&project, "rated").await.unwrap_err().to_string(), expected);
    }
}

//! Running charges: what is evaluated again when usage has come.

use super::*;
use crate::fold::RunningCharges;

/// Sixty customers with one subject each, of whom every one has usage.
async fn sixty(query: &str) -> (Arc<RuleProject>, Arc<Fold>, Vec<Window>) {
    let project = project(&[("rated", query)]).await;
    let fold = fold(&project, "rated").await.unwrap();
    let windows = months("2026-03-01T00:00:00Z", "2026-05-01T00:00:00Z", &project, "rated");
    (project, fold, windows)
}

fn of(project: &RuleProject, first: usize, lines: &[String]) -> RecordBatch {
    decoded(&project.usage, &events(&lines.join("\n")), first)
}

fn one(customer: usize, month: usize, quantity: usize) -> String {
    format!("c{customer} call 2026-{month:02}-10T00:00:00Z {quantity}")
}

const BY_SUBJECT: &str = " AS SELECT u.subject AS customer_id, 'Calls' AS item, sum(u.quantity) AS amount, 'EUR' AS currency FROM usage u \
    GROUP BY u.subject";

#[tokio::test]
async fn only_the_groups_that_were_touched_are_evaluated_again() {
    let (project, fold, windows) = sixty(BY_SUBJECT).await;
    let open = fold.open(&windows).unwrap();
    let (mut state, mut known) = (fold.state(), RunningCharges::default());
    let mut lines: Vec<String> = (0..60).flat_map(|customer| [one(customer, 3, 1), one(customer, 4, 2)]).collect();
    state.fold_noting(&of(&project, 0, &lines), &open, &mut known).await.unwrap();
    let nothing = evaluator(&project, &of(&project, 0, &[]));
    let read = |lines: &[String]| evaluator(&project, &of(&project, 0, lines));
    let mut evaluated = 0;
    let mut since = |known: &RunningCharges| {
        let groups = known.groups() - evaluated;
        evaluated = known.groups();
        groups
    };
    let found = shown(&state.running(None, &windows, &nothing, &mut known).await);
    assert_eq!(found, shown(&read(&lines).evaluate(fold.rule(), &windows).await));
    assert_eq!(since(&known), 120);
    // Nothing has come.
    assert_eq!(shown(&state.running(None, &windows, &nothing, &mut known).await), found);
    assert_eq!(since(&known), 0);
    // One customer in one window, which is evaluated in that window.
    let new = [one(7, 4, 40), one(7, 4, 41)];
    state.fold_noting(&of(&project, lines.len(), &new), &open, &mut known).await.unwrap();
    lines.extend(new);
    let expected = shown(&read(&lines).evaluate(fold.rule(), &windows).await);
    assert_eq!(shown(&state.running(None, &windows, &nothing, &mut known).await), expected);
    let groups = since(&known);
    assert!((1..=3).contains(&groups), "{groups}");
    // Usage that is in a later state comes on top of what is known, each time that somebody asks.
    let mut later = fold.state();
    let new = [one(9, 3, 50), one(60, 3, 51)];
    later.fold(&of(&project, lines.len(), &new), &open).await.unwrap();
    lines.extend(new);
    let expected = shown(&read(&lines).evaluate(fold.rule(), &windows).await);
    for _ in 0..2 {
        assert_eq!(shown(&state.running(Some(&later), &windows, &nothing, &mut known).await), expected);
        let groups = since(&known);
        assert!((2..=4).contains(&groups), "{groups}");
    }
    // One customer's charges.
    let (of_one, groups) = state.running_of(Some(&later), &windows, &nothing, "c9").await.unwrap();
    assert_eq!(shown(&Ok(of_one)), "c9: 51 | c9: 2");
    assert!(groups <= 3, "{groups}");
    // What is dropped is forgotten.
    state.drop_windows(&windows[..1]);
    known.retain(|window| *window != windows[0]);
    let found = shown(&state.running(None, &windows, &nothing, &mut known).await);
    assert!(found.starts_with(" | c0: 2"), "{found}");
}

#[tokio::test]
async fn customers_are_told_apart_where_their_key_stays_with_their_rows() {
    let charge = "'Calls' AS item, 'EUR' AS currency";
    for (query, apart) in [
        (BY_SUBJECT.to_owned(), true),
        // Below: what is charged is by contract, and the customer comes of a join above.
        (
            format!(
                ", fan_out = 'allowed' AS SELECT c.customer_id, {charge}, sum(a.q) AS amount FROM (SELECT u.subject, sum(u.quantity) AS q \
                 FROM usage u GROUP BY u.subject) a CROSS JOIN billing_window w JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c \
                 ON c.subject = a.subject GROUP BY c.customer_id"
            ),
            false,
        ),
        // Each by itself in a window function, and all together.
        (
            format!(
                " AS SELECT a.subject AS customer_id, {charge}, a.q AS amount, a.n FROM (SELECT b.subject, b.q, CAST(row_number() OVER \
                 (PARTITION BY b.subject ORDER BY b.q) AS BIGINT) AS n FROM (SELECT u.subject, u.meter, sum(u.quantity) AS q FROM usage u \
                 GROUP BY u.subject, u.meter) b) a"
            ),
            true,
        ),
        (
            format!(
                " AS SELECT a.subject AS customer_id, {charge}, a.q AS amount, a.n FROM (SELECT b.subject, b.q, CAST(row_number() OVER \
                 (ORDER BY b.q, b.subject) AS BIGINT) AS n FROM (SELECT u.subject, sum(u.quantity) AS q FROM usage u GROUP BY u.subject) b) a"
            ),
            false,
        ),
        // A share of all.
        (
            format!(
                " AS SELECT a.subject AS customer_id, {charge}, a.q / (SELECT 1 + count(*) FROM usage v) AS amount FROM (SELECT u.subject, \
                 sum(u.quantity) AS q FROM usage u GROUP BY u.subject) a"
            ),
            false,
        ),
        // A fee for who has no usage.
        (
            format!(
                ", fan_out = 'allowed' AS SELECT l.subject AS customer_id, {charge}, coalesce(a.q, 7) AS amount FROM (SELECT DISTINCT m.subject \
                 FROM labels m) l LEFT JOIN (SELECT u.subject, sum(u.quantity) AS q FROM usage u GROUP BY u.subject) a ON a.subject = l.subject"
            ),
            true,
        ),
        (
            format!(
                " AS SELECT a.subject AS customer_id, {charge}, a.q AS amount FROM (SELECT u.subject, sum(u.quantity) AS q FROM usage u \
                 GROUP BY u.subject) a UNION ALL SELECT DISTINCT l.subject, 'Standing', 'EUR', 3 FROM labels l"
            ),
            true,
        ),
    ] {
        let (project, fold, windows) = sixty(&query).await;
        assert_eq!(fold.customers.is_some(), apart, "{query}\n{}", fold.above.display_indent());
        // Either way, the charges are those of all usage.
        let open = fold.open(&windows).unwrap();
        let (mut state, mut known) = (fold.state(), RunningCharges::default());
        let mut lines: Vec<String> = Vec::new();
        for step in 0..12 {
            let subject = ["s1", "s2", "s3"][step % 3];
            let new = [format!("{subject} call 2026-{:02}-{:02}T00:00:00Z {step}", step % 2 + 3, step + 1)];
            let usage = of(&project, step, &new);
            lines.extend(new);
            let rated = evaluator(&project, &of(&project, 0, &lines));
            let expected = shown(&rated.evaluate(fold.rule(), &windows).await);
            let mut later = fold.state();
            later.fold(&usage, &open).await.unwrap();
            assert_eq!(shown(&state.running(Some(&later), &windows, &rated, &mut known).await), expected, "{query} {lines:?}");
            state.fold_noting(&usage, &open, &mut known).await.unwrap();
            assert_eq!(shown(&state.running(None, &windows, &rated, &mut known).await), expected, "{query} {lines:?}");
        }
    }
}

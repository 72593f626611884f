//! Charges of a rule's own earlier windows, of which some are published, some are folded and some are neither.

use super::*;

/// What was used, and what was owed in the month before.
fn balance(factor: u32, options: &str) -> (String, String) {
    let text = format!(
        "CREATE MATERIALIZED VIEW rated WITH (window = 'month', history = '1 window', fan_out = 'allowed', {options}) AS \
         WITH used AS (SELECT u.subject, sum(u.quantity) AS q FROM usage u GROUP BY u.subject), \
         owed AS (SELECT e.customer_id, sum(e.amount) AS amount FROM earlier.rated e GROUP BY e.customer_id, e.currency) \
         SELECT u.subject AS customer_id, 'Balance' AS item, u.q * {factor} + coalesce(o.amount, 0) AS amount, 'EUR' AS currency \
         FROM used u LEFT JOIN owed o ON o.customer_id = u.subject"
    );
    (format!("rated_{factor}.sql"), text)
}

#[tokio::test]
async fn earlier_windows_are_read_as_they_are_published_or_else_rated() {
    let reference = ReferenceData::from_files(Vec::new(), "project", &mut Diagnostics::default());
    let texts =
        vec![balance(1, "effective_from = '2026-01-01', effective_to = '2026-03-01'"), balance(10, "effective_from = '2026-03-01'")];
    let checked = RuleProject::check(texts, reference, usage_schema(&[]), Diagnostics::default()).await;
    let project = Arc::new(checked.unwrap_or_else(|found| panic!("{found}")).0);
    let newer = project.rules.iter().find(|rule| rule.options.effective_to.is_none()).unwrap();
    let fold = Arc::new(Fold::of(runtime(&limits()).unwrap(), limits(), Arc::clone(&project), newer).await.unwrap());
    let month = |text: &str| newer.options.window.window_of(instant(text)).unwrap();
    let [january, february, march, april, may] = ["01", "02", "03", "04", "05"].map(|number| month(&format!("2026-{number}-01T00:00:00Z")));
    let lines = ["01", "02", "03", "04", "05"].map(|number| format!("s1 call 2026-{number}-02T00:00:00Z 1"));
    let usage = decoded(&project.usage, &events(&lines.join("\n")), 0);
    let mut state = fold.state();
    state.fold(&usage, &fold.open(&[march, april, may]).unwrap()).await.unwrap();
    let published = |window: Window, amount: &str| {
        let lines = format!("s1 call {} {amount}", ratemill_schemas::time::format_instant(window.start));
        let usage = decoded(&project.usage, &events(&lines), 0);
        (window, usage)
    };
    // January and February are of the version before; what was published is not what would be charged now.
    for (given, expected) in [
        (vec![], "s1: 22 | s1: 32"),
        (vec![published(february, "100")], "s1: 120 | s1: 130"),
        (vec![published(january, "100")], "s1: 121 | s1: 131"),
        (vec![published(march, "100")], "s1: 1010 | s1: 1020"),
        (vec![published(january, "1"), published(february, "7"), published(march, "0.5")], "s1: 15 | s1: 25"),
    ] {
        let mut rated = evaluator(&project, &usage);
        for (window, usage) in given {
            let version = project.rules.iter().find(|rule| rule.in_force_at(window.start)).unwrap();
            let charges = evaluator(&project, &usage).evaluate(version, &[window]).await.unwrap();
            rated = rated.with_published("rated", charges);
        }
        assert_eq!(shown(&rated.evaluate(newer, &[april, may]).await), expected);
        assert_eq!(shown(&state.evaluate(&[april, may], &rated).await), expected);
    }
    // The window before is of the version before.
    assert_eq!(shown(&state.evaluate(&[march], &evaluator(&project, &usage)).await), "s1: 12");
}

//! Which reference data a state depends on.

use super::*;

async fn folded(rule: &str, [subjects, rates, above]: [&str; 3]) -> Arc<Fold> {
    let table = |name: &str, columns: &str, csv: &str| {
        (name.to_owned(), format!("key = ['{columns}']\n[columns]\n{columns} = 'text'\nfactor = 'decimal'\n"), csv.to_owned())
    };
    let exchange = "[columns]\nfrom_currency = 'text'\nto_currency = 'text'\nrate = 'decimal'\nvalid_from = 'date'\nvalid_to = 'date?'\n";
    let files = vec![
        table("subjects", "subject", &format!("subject,factor\n{subjects}\n")),
        table("prices", "item", &format!("item,factor\n{above}\n")),
        ("exchange_rates".to_owned(), exchange.to_owned(), format!("from_currency,to_currency,rate,valid_from,valid_to\n{rates}\n")),
    ];
    let mut diagnostics = Diagnostics::default();
    let reference = ReferenceData::from_files(files, "project", &mut diagnostics);
    let text =
        format!("CREATE MATERIALIZED VIEW rated WITH (window = 'month', effective_from = '2026-01-01', fan_out = 'allowed') AS {rule}");
    let checked = RuleProject::check(vec![("rated.sql".to_owned(), text)], reference, usage_schema(&[]), diagnostics).await;
    let project = Arc::new(checked.unwrap_or_else(|found| panic!("{found}")).0);
    fold(&project, "rated").await.unwrap()
}

#[tokio::test]
async fn a_state_depends_on_what_events_are_joined_with() {
    let plain = "SELECT a.subject AS customer_id, p.item, a.q * p.factor AS amount, 'EUR' AS currency FROM (SELECT u.subject, \
        sum(u.quantity * s.factor) AS q FROM usage u JOIN subjects s ON s.subject = u.subject GROUP BY u.subject) a CROSS JOIN prices p";
    let converting = "SELECT u.subject AS customer_id, 'Calls' AS item, sum(convert(u.quantity, 'USD', 'EUR', u.time)) AS amount, \
        'EUR' AS currency FROM usage u GROUP BY u.subject";
    let before = ["s1,2", "USD,EUR,0.5,2026-01-01,", "Calls,3"];
    let changed = |index: usize, rows| {
        let mut changed = before;
        changed[index] = rows;
        changed
    };
    let others = [changed(0, "s1,4"), changed(1, "USD,EUR,0.25,2026-01-01,"), changed(2, "Calls,30")];
    for (rule, fits, amounts) in [(plain, [false, true, true], ["60", "60", "600"]), (converting, [true, false, true], ["5", "5", "5"])] {
        let fold = folded(rule, before).await;
        let windows = months("2026-03-01T00:00:00Z", "2026-04-01T00:00:00Z", &fold.project, "rated");
        let mut state = fold.state();
        let usage = decoded(&fold.project.usage, &events("s1 call 2026-03-02T00:00:00Z 10"), 0);
        state.fold(&usage, &fold.open(&windows).unwrap()).await.unwrap();
        let bytes = state.encode().unwrap();
        for ((other, fits), amount) in others.into_iter().zip(fits).zip(amounts) {
            let other = folded(rule, other).await;
            match FoldState::decode(&other, &bytes) {
                Ok(state) => {
                    assert!(fits, "{rule}");
                    let charges = shown(&state.evaluate(&windows, &evaluator(&other.project, &usage)).await);
                    assert_eq!(charges, format!("s1: {amount}"));
                }
                Err(error) => {
                    assert!(!fits, "{rule}: {error}");
                    assert!(error.to_string().starts_with("the checkpoint is of reference"), "{error}");
                }
            }
        }
    }
}

//! The rule of the workloads R1 (a month rated from Parquet) and R3 (the same lines from a stream) folds.

use super::*;

const EVENTS: &str = "
    c1 kwh 2026-10-01T00:30:00Z 90
    c1 kwh 2026-10-01T18:00:00Z 30
    c1 kwh 2026-10-20T18:00:00Z 5
    c2 kwh 2026-10-16T03:00:00Z 7
    c2 calls 2026-10-31T23:59:59Z 250
    c1 calls 2026-10-15T12:00:00Z 40
    nobody kwh 2026-10-15T12:00:00Z 40
    c1 kwh 2026-11-01T00:00:00Z 1000";

#[tokio::test]
async fn the_month_of_r1_is_folded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/side_by_side/project");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let rows = [
        (
            "contracts",
            "subject,plan,currency,valid_from,valid_to\nc1,p1,EUR,2026-01-01,2026-10-16\nc1,p2,EUR,2026-10-16,\nc2,p1,EUR,2026-01-01,\n",
        ),
        (
            "prices",
            "plan,meter,up_to,unit_price,flat_fee\np1,kwh,100,0.3,5\np1,kwh,,0.2,0\np2,kwh,,0.25,1\np1,calls,100,0.1,0\np1,calls,,0.05,2\np2,calls,,0.04,0\n",
        ),
        ("tou_hours", "meter,hour,band\nkwh,0,night\nkwh,3,night\nkwh,18,peak\n"),
        ("tou_rates", "plan,band,adder\np1,peak,0.05\np2,peak,0.07\np1,night,0.01\n"),
    ];
    let files = rows.map(|(name, csv)| (name.to_owned(), read(&format!("reference/{name}.toml")), csv.to_owned()));
    let mut diagnostics = Diagnostics::default();
    let reference = ReferenceData::from_files(files.to_vec(), "project", &mut diagnostics);
    let rules = vec![("daily_lines.sql".to_owned(), read("rules/daily_lines.sql"))];
    let checked = RuleProject::check(rules, reference, usage_schema(&[]), diagnostics).await;
    let project = Arc::new(checked.unwrap_or_else(|found| panic!("{found}")).0);
    let fold = fold(&project, "daily_lines").await.unwrap();
    assert!(fold.keeps().is_empty(), "{:?}", fold.keeps());
    assert!(fold.customers.is_some(), "its customers are told apart");
    let windows = months("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z", &project, "daily_lines");
    let usage = decoded(&project.usage, &events(EVENTS), 0);
    let mut state = fold.state();
    let open = fold.open(&windows).unwrap();
    for first in [6, 2, 0, 4] {
        state.fold(&usage.slice(first, 2), &open).await.unwrap();
    }
    let rated = evaluator(&project, &usage);
    let expected = shown(&rated.evaluate(fold.rule(), &windows).await);
    assert!(expected.matches("c1").count() == 3 && expected.matches("c2").count() == 2, "{expected}");
    assert_eq!(shown(&state.evaluate(&windows, &rated).await), expected);
}

//! What is behind a charge is enough for it: rated from its events alone, it is the same.

use std::collections::HashSet;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use ratemill_schemas::WindowSpec;

use super::random::Random;
use super::{Case, Mode, WindowCharges, rows};
use crate::rule::RuleWindow;

/// With these, what is not there counts: without the events of others, more rows come.
const NOT_MONOTONE: [&str; 18] = [
    "anti join",
    "charges of another rule",
    "correlated scalar subquery",
    "earlier charges",
    "exists",
    "full join",
    "global aggregate",
    "in",
    "left join",
    "mark join",
    "not exists",
    "one window at a time",
    "reference LEFT JOIN usage",
    "right join",
    "scalar subquery",
    "semi join",
    "union with a reference-only branch",
    "window function",
];

/// What was found out of one charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traced {
    /// There is no charge.
    Nothing,
    /// Some of it cannot be traced, and it is said what.
    Told,
    /// It was found in its events.
    Found,
    /// And rated again from its events.
    Enough,
}

/// Traces a charge; fails where that fails, or where its events are not enough for it.
pub(super) async fn traced(case: &Case, random: &mut Random) -> Result<Traced, String> {
    let rule = case.project.rules.iter().find(|rule| rule.name == "rated").unwrap();
    let evaluator = case.evaluator(Mode::Auto, 1, vec![vec![case.usage.clone()]]);
    let Ok(charged) = evaluator.evaluate(rule, &case.windows).await else { return Ok(Traced::Nothing) };
    let charged: Vec<&WindowCharges> = charged.iter().filter(|charges| charges.charges.num_rows() > 0).collect();
    if charged.is_empty() {
        return Ok(Traced::Nothing);
    }
    let charges = charged[random.below(charged.len())];
    let charge = charges.charges.slice(random.below(charges.charges.num_rows()), 1);
    let contract = charge.column(1).as_string::<i32>();
    let by_contract = rule.options.window == WindowSpec::BillingPeriod;
    let contract_id = (by_contract && contract.is_valid(0)).then(|| contract.value(0).to_owned());
    let rated = RuleWindow { window: charges.window, contract_id };
    let found = evaluator.provenance(rule, &rated, &charge, usize::MAX).await.map_err(|error| error.to_string())?;
    let failed: Vec<&String> = found.notes.iter().filter(|note| note.contains("listed: ") || note.contains("not shown")).collect();
    let allowed = |note: &&String| note.contains("ROLLUP, CUBE");
    if !failed.iter().all(allowed) {
        // Whoever asks is told what cannot be traced, and why.
        return Ok(Traced::Told);
    }
    if !found.notes.is_empty() || NOT_MONOTONE.iter().any(|shape| case.shapes.contains(shape)) {
        return Ok(Traced::Found);
    }
    let events: HashSet<(&str, &str)> = found.events.iter().map(|event| (event.source.as_str(), event.id.as_str())).collect();
    let text = |name: &str| case.usage.column_by_name(name).unwrap().as_string::<i32>();
    let (sources, ids) = (text("source"), text("id"));
    let kept: BooleanArray = sources.iter().zip(ids).map(|(source, id)| Some(events.contains(&(source.unwrap(), id.unwrap())))).collect();
    let usage = filter_record_batch(&case.usage, &kept).unwrap();
    let again = case.evaluator(Mode::Auto, 1, vec![vec![usage]]).evaluate(rule, &[charges.window]).await;
    let again = again.map_err(|error| format!("from its events alone: {error}"))?;
    let charge = rows(&WindowCharges { window: charges.window, charges: charge }).pop().unwrap();
    if !rows(&again[0]).contains(&charge) {
        return Err(format!("from its {} events alone\n  {charge}\nis not among\n  {}", events.len(), rows(&again[0]).join("\n  ")));
    }
    Ok(Traced::Enough)
}

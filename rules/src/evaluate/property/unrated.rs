//! Claimed = rated + unrated, told for all windows at once and event by event alike; and usage that is not rated changes no
//! charge: without it, the rule gives the same.

use std::collections::BTreeSet;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;

use super::{Case, Charged, Mode, same};
use crate::unrated::{Claims, Fate, NotAnalysed, PLACE, Places};

/// Some usage was claimed and lost.
pub(super) const LOST: &str = "usage is lost";
/// The charges without usage that is not rated are the same.
pub(super) const SAME: &str = "charges are those of rated usage";

/// What lets usage matter that is not rated: a test whether there is any, an outer join that lacks it, and what was before.
const MORE: [&str; 15] = [
    "anti join",
    "carry",
    "charges of another rule",
    "earlier charges",
    "exists",
    "full join",
    "in",
    "left join",
    "mark join",
    "not exists",
    "not in",
    "reference LEFT JOIN usage",
    "right join",
    "semi join",
    "set comparison",
];

/// What came up, or why the rule is not analysed; fails where the ways of telling differ.
pub(super) async fn told(case: &Case, expected: &Charged) -> Result<Result<String, NotAnalysed>, String> {
    let rated = case.project.rules.iter().find(|rule| rule.name == "rated").unwrap();
    let reference = &case.project.reference;
    let (from, to) = (case.windows.first().map_or(0, |window| window.start), case.windows.last().map_or(0, |window| window.end));
    let mut windows = rated.rated_between(reference, from, to).unwrap();
    windows.retain(|rated| case.windows.contains(&rated.window));
    let evaluator = case.evaluator(Mode::Auto, 2, vec![vec![case.usage.clone()]]);
    let claims = match Claims::of(&evaluator, rated, Places::of(windows).or_by(reference)).await {
        Ok(claims) => claims,
        Err(reason) => return Ok(Err(reason)),
    };
    let fates = match claims.fates(&case.usage).await {
        Ok(fates) => fates,
        // What fails on the way fails when it is rated, or would.
        Err(reason) => return Ok(Err(reason)),
    };
    let unrated: Vec<_> = claims.unrated().await.map_err(|error| error.to_string())?.try_collect().await.map_err(|e| e.to_string())?;
    let column = |name: &str| -> Vec<i64> {
        unrated.iter().flat_map(|batch| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec()).collect()
    };
    let positions: BTreeSet<i64> = column("log_position").into_iter().collect();
    let lost: BTreeSet<i64> = (0..).zip(&fates).filter(|(_, fate)| matches!(fate, Fate::Lost(_))).map(|(position, _)| position).collect();
    if positions != lost || positions.len() != column("log_position").len() {
        return Err(format!("unrated by the anti join {positions:?}, event by event {lost:?}"));
    }
    if let Some(missing) = fates.iter().find(|fate| matches!(fate, Fate::Lost(number) if claims.reason(*number).is_none())) {
        return Err(format!("{missing:?} has no reason"));
    }
    let places = column(PLACE);
    let counts = claims.counts().await.map_err(|error| error.to_string())?;
    for (place, counts) in &counts {
        let unrated = places.iter().filter(|found| *found == place).count();
        if counts.claimed != counts.rated + i64::try_from(unrated).unwrap() {
            return Err(format!("place {place}: {counts:?} and {unrated} unrated"));
        }
    }
    let rated_events = fates.iter().filter(|fate| **fate == Fate::Rated).count();
    if counts.iter().map(|(_, counts)| counts.rated).sum::<i64>() != i64::try_from(rated_events).unwrap() {
        return Err(format!("{counts:?} of {rated_events} rated events"));
    }
    let mut outcome = if lost.is_empty() { "nothing is lost".to_owned() } else { LOST.to_owned() };
    if expected.is_ok() && !MORE.iter().any(|shape| case.shapes.contains(shape)) {
        let kept: BooleanArray = fates.iter().map(|fate| Some(*fate == Fate::Rated)).collect();
        let kept = filter_record_batch(&case.usage, &kept).unwrap();
        same("without usage that is not rated", expected, &case.rate(Mode::Auto, 1, vec![vec![kept]], &case.windows).await, false)?;
        outcome = format!("{outcome}, {SAME}");
    }
    Ok(Ok(outcome))
}

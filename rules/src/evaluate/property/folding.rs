//! Folded = one by one: events arrive in any order and in batches of any size, in several states that are merged, written
//! and read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use ratemill_schemas::Window;

use super::data::dealt_out;
use super::random::Random;
use super::{Case, Charged, charged, same};
use crate::fold::{Fold, FoldState, NotFoldable, RunningCharges};
use crate::session::{SessionLimits, runtime};

/// What must have been folded in every run; rarer shapes have a test of their own in `fold`.
pub(super) const FOLDED: [&str; 25] = [
    "aggregate",
    "aggregate distinct",
    "aggregate filter",
    "anchored periods",
    "anti join",
    "billing periods",
    "carry",
    "charges of another rule",
    "customers apart",
    "correlated scalar subquery",
    "cte",
    "distinct",
    "earlier charges",
    "filter",
    "global aggregate",
    "having",
    "inner join",
    "left join",
    "not exists",
    "reference LEFT JOIN usage",
    "scalar subquery",
    "sub-aggregate",
    "union",
    "union with a reference-only branch",
    "window function",
];

async fn fold(case: &Case) -> Result<Arc<Fold>, NotFoldable> {
    let limits = SessionLimits { partitions: 2, ..SessionLimits::default() };
    let rated = case.project.rules.iter().find(|rule| rule.name == "rated").unwrap();
    Fold::of(runtime(&limits).unwrap(), limits, Arc::clone(&case.project), rated).await.map(Arc::new)
}

/// A state as it is after a restart.
async fn restarted(case: &Case, state: FoldState) -> Result<FoldState, String> {
    let bytes = state.encode().unwrap();
    FoldState::decode(&fold(case).await.unwrap(), &bytes).map_err(|error| format!("{error}"))
}

async fn evaluated(case: &Case, state: &FoldState, windows: &[Window]) -> Charged {
    charged(state.evaluate(windows, &case.evaluator(super::Mode::Auto, 1, vec![vec![case.usage.clone()]])).await, windows)
}

/// What somebody is told who asks while events arrive.
async fn asked(case: &Case, [state, later]: [&FoldState; 2], known: &mut RunningCharges, windows: &[Window]) -> Charged {
    let evaluator = case.evaluator(super::Mode::Auto, 1, vec![vec![case.usage.clone()]]);
    charged(state.running(Some(later), windows, &evaluator, known).await, windows)
}

/// Fails where charges of folded windows differ while those before them are published.
async fn after_published(
    case: &Case,
    state: &FoldState,
    expected: &BTreeMap<Window, Vec<String>>,
    random: &mut Random,
) -> Result<(), String> {
    let rated = case.project.rules.iter().find(|rule| rule.name == "rated").unwrap();
    let (published, open) = case.windows.split_at(random.below(case.windows.len() + 1));
    let evaluator = || case.evaluator(super::Mode::Auto, 1, vec![vec![case.usage.clone()]]);
    let published = evaluator().evaluate(rated, published).await.map_err(|error| error.to_string())?;
    let found = charged(state.evaluate(open, &evaluator().with_published("rated", published)).await, open);
    let expected = open.iter().map(|window| (*window, expected[window].clone())).collect();
    same("folded after published windows", &Ok(expected), &found, false)
}

/// Whether the rule is folded, and whether its customers are told apart; fails where its charges differ.
pub(super) async fn folded(case: &Case, expected: &Charged, random: &mut Random) -> Result<Result<bool, NotFoldable>, String> {
    let fold = match fold(case).await {
        Ok(fold) => fold,
        Err(reason) => return Ok(Err(reason)),
    };
    let open = fold.open(&case.windows).unwrap();
    let mut states = vec![fold.state(), fold.state()];
    let mut known = RunningCharges::default();
    let batches: Vec<_> = dealt_out(&case.usage, 1, random).concat();
    for batch in batches {
        let index = random.below(states.len());
        let folded =
            if index == 0 { states[0].fold_noting(&batch, &open, &mut known).await } else { states[index].fold(&batch, &open).await };
        folded.map_err(|error| format!("folding: {error}"))?;
        if random.chance(10) {
            states[index] = restarted(case, states[index].clone()).await?;
        }
        if random.chance(10) {
            // Looking changes nothing.
            let _ = evaluated(case, &states[index], &case.windows).await;
        }
        if random.chance(15) {
            // What is known of former answers is as good as what is evaluated from all.
            let both = asked(case, [&states[0], &states[1]], &mut known, &case.windows).await;
            let evaluator = case.evaluator(super::Mode::Auto, 1, vec![vec![case.usage.clone()]]);
            let anew = charged(states[0].evaluate_with(&states[1], &case.windows, &evaluator).await, &case.windows);
            same("asked while usage arrives", &anew, &both, false)?;
        }
    }
    same("asked", expected, &asked(case, [&states[0], &states[1]], &mut known, &case.windows).await, false)?;
    let (delta, mut state) = (states.pop().unwrap(), states.pop().unwrap());
    state.merge(delta).await.map_err(|error| format!("merging: {error}"))?;
    same("folded", expected, &evaluated(case, &state, &case.windows).await, false)?;
    if let Ok(expected) = expected {
        after_published(case, &state, expected, random).await?;
    }
    state = restarted(case, state).await?;
    same("folded and restarted", expected, &evaluated(case, &state, &case.windows).await, false)?;
    if let (Ok(expected), Some(first)) = (expected, case.windows.get(random.below(case.windows.len().max(1)))) {
        // What lies before the windows that may still be asked for is one stretch.
        state.open_from(first.start).map_err(|error| format!("cutting: {error}"))?;
        let windows: Vec<Window> = case.windows.iter().copied().filter(|window| window.start >= first.start).collect();
        let expected = windows.iter().map(|window| (*window, expected[window].clone())).collect();
        same("folded from some window on", &Ok(expected), &evaluated(case, &state, &windows).await, false)?;
    }
    let (dropped, kept): (Vec<Window>, Vec<Window>) =
        case.windows.iter().partition(|window| !state.opens(window.start) || random.chance(50));
    state.drop_windows(&dropped);
    if let Ok(expected) = expected {
        let expected = kept.iter().map(|window| (*window, expected[window].clone())).collect();
        same("folded without some windows", &Ok(expected), &evaluated(case, &state, &kept).await, false)?;
    }
    state.drop_windows(&kept);
    if state.rows() > 0 || !state.windows().is_empty() {
        return Err(format!("{} rows are left", state.rows()));
    }
    Ok(Ok(fold.tells_customers_apart()))
}

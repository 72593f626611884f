//! Running charges: what open windows come to, asked again and again while usage arrives.
//!
//! The charges of each window are kept as they were evaluated last. Usage that is folded afterwards touches customers, and
//! only their groups are evaluated again when somebody asks; where charges of one customer can come of the groups of
//! another, the whole window is. Usage that is not in the state yet is in a second one, and is added to what is given, not
//! to what is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use datafusion::common::Result;
use ratemill_schemas::Window;

use super::evaluation::{Evaluation, customers_of};
use super::state::{Added, FoldState, numbers_of};
use super::{Fold, OpenWindows};
use crate::evaluate::{Blame, Evaluator, RateError, WindowCharges, root_message};
use crate::inputs::Input;

/// The charges of open windows as they were evaluated last.
#[derive(Debug, Default)]
pub struct RunningCharges {
    windows: HashMap<Window, Known>,
    groups: usize,
}

/// The charges of one window.
#[derive(Debug)]
struct Known {
    charges: RecordBatch,
    touched: Touched,
}

/// Whose usage has been folded since.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Touched {
    Customers(HashSet<String>),
    /// Anybody's.
    All,
}

impl Touched {
    fn nobody() -> Self {
        Self::Customers(HashSet::new())
    }

    fn add(&mut self, customer: Option<&str>) {
        match (self, customer) {
            (Self::All, _) => {}
            (Self::Customers(customers), Some(customer)) => {
                if !customers.contains(customer) {
                    customers.insert(customer.to_owned());
                }
            }
            (touched, None) => *touched = Self::All,
        }
    }
}

impl RunningCharges {
    /// How many groups were evaluated so far.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Forgets the other windows: their usage is not in the state any more, or is another.
    pub fn retain(&mut self, is_kept: impl Fn(&Window) -> bool) {
        self.windows.retain(|window, _| is_kept(window));
    }

    /// Forgets all windows.
    pub fn forget_all(&mut self) {
        self.windows.clear();
    }

    /// Takes note of the rows that events have added to `state`.
    fn note(&mut self, state: &FoldState, added: &[(usize, RecordBatch)]) -> Result<()> {
        if self.windows.is_empty() {
            return Ok(());
        }
        for (window, touched) in touched_by(&state.fold, state, added)? {
            if let Some(known) = self.windows.get_mut(&window) {
                match touched {
                    Touched::Customers(customers) => customers.iter().for_each(|customer| known.touched.add(Some(customer))),
                    Touched::All => known.touched = Touched::All,
                }
            }
        }
        Ok(())
    }
}

/// The windows, and whose usage in them, that rows of a state are of.
fn touched_by(fold: &Fold, state: &FoldState, added: &[(usize, RecordBatch)]) -> Result<BTreeMap<Window, Touched>> {
    let mut found: BTreeMap<i64, Touched> = BTreeMap::new();
    for (point, batch) in added {
        let key = fold.customers.as_ref().and_then(|keys| keys.get(*point));
        let customers = key.map(|key| customers_of(batch, *key)).transpose()?;
        for (row, number) in numbers_of(batch, &fold.points[*point].0.windows).enumerate() {
            let touched = number.map(|number| found.entry(number).or_insert_with(Touched::nobody));
            if let Some(touched) = touched {
                touched.add(customers.filter(|customers| customers.is_valid(row)).map(|customers| customers.value(row)));
            }
        }
    }
    let mut windows: BTreeMap<Window, Touched> = BTreeMap::new();
    for (number, touched) in found {
        let Some(rated) = state.windows.get(&number) else { continue };
        let known = windows.entry(rated.window).or_insert_with(Touched::nobody);
        match touched {
            Touched::Customers(customers) => customers.iter().for_each(|customer| known.add(Some(customer))),
            Touched::All => *known = Touched::All,
        }
    }
    Ok(windows)
}

impl FoldState {
    /// [Folds](Self::fold) a batch of new events in, and notes in `known` which charges are others by now.
    ///
    /// # Errors
    /// As [`Self::fold`]; `known` is then to be forgotten.
    pub async fn fold_noting(&mut self, usage: &RecordBatch, open: &OpenWindows, known: &mut RunningCharges) -> Result<(), RateError> {
        let added = self.fold_in(usage, open).await?;
        known.note(self, &added).map_err(|error| self.unevaluated(&error))?;
        if self.fold.carry.is_some() && !known.windows.is_empty() {
            let mut opened = self.fold.state();
            opened.open_with(usage)?;
            if let Some(earliest) = opened.openings.earliest() {
                // Windows that begin after one of the events open with it, maybe.
                for (_, known) in known.windows.iter_mut().filter(|(window, _)| window.start > earliest) {
                    known.touched = Touched::All;
                }
            }
        }
        Ok(())
    }

    /// The charges of each window, in the order of `windows`, as [`Self::evaluate_with`] gives them; of what is in `known`
    /// only what was touched since is evaluated. `later` has what came after this state.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    pub async fn running(
        &self,
        later: Option<&Self>,
        windows: &[Window],
        evaluator: &Evaluator,
        known: &mut RunningCharges,
    ) -> Result<Vec<WindowCharges>, RateError> {
        let states: Vec<&Self> = std::iter::once(self).chain(later).collect();
        let whole = Evaluation { fold: &self.fold, states: &states, only: None };
        if self.fold.reads_charges() {
            // Whatever they are now, they may have been others before.
            let found = whole.charges(windows, evaluator).await?;
            known.groups += found.groups;
            return Ok(found.charges);
        }
        let set = self.fold.set(windows)?;
        if let Some(error) = whole.failure(&set) {
            return Err(error);
        }
        self.bring_up(windows, evaluator, known).await?;
        let mut charges: HashMap<Window, RecordBatch> =
            windows.iter().filter_map(|window| Some((*window, known.windows.get(window)?.charges.clone()))).collect();
        if let Some(later) = later {
            let touched = self.touched_later(later, windows)?;
            let touched: Vec<(Window, Touched)> = touched.into_iter().filter(|(window, _)| charges.contains_key(window)).collect();
            known.groups += self.renew(&states, &touched, evaluator, &mut charges).await?;
        }
        Ok(windows.iter().map(|window| evaluator.charges_of(&self.fold.rule, *window, charges.get(window))).collect())
    }

    /// The same of one customer, and how many groups were evaluated; charges of others may be missing, or, where customers are
    /// not [told apart](Fold::tells_customers_apart), are there.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    pub async fn running_of(
        &self,
        later: Option<&Self>,
        windows: &[Window],
        evaluator: &Evaluator,
        customer: &str,
    ) -> Result<(Vec<WindowCharges>, usize), RateError> {
        let states: Vec<&Self> = std::iter::once(self).chain(later).collect();
        let only = HashSet::from([customer.to_owned()]);
        let only = self.fold.customers.as_ref().map(|_| &only);
        let found = Evaluation { fold: &self.fold, states: &states, only }.charges(windows, evaluator).await?;
        Ok((found.charges, found.groups))
    }

    /// Evaluates what is not known, or was touched, from this state.
    async fn bring_up(&self, windows: &[Window], evaluator: &Evaluator, known: &mut RunningCharges) -> Result<(), RateError> {
        let wanted: BTreeSet<Window> = windows.iter().copied().collect();
        let touched: Vec<(Window, Touched)> = wanted
            .into_iter()
            .map(|window| (window, known.windows.get(&window).map_or(Touched::All, |known| known.touched.clone())))
            .filter(|(_, touched)| *touched != Touched::nobody())
            .collect();
        let mut charges: HashMap<Window, RecordBatch> =
            touched.iter().filter_map(|(window, _)| Some((*window, known.windows.get(window)?.charges.clone()))).collect();
        known.groups += self.renew(&[self], &touched, evaluator, &mut charges).await?;
        for (window, charges) in charges {
            known.windows.insert(window, Known { charges, touched: Touched::nobody() });
        }
        Ok(())
    }

    /// Evaluates the charges of touched windows, of the touched customers where they are told apart; returns how many groups
    /// there were.
    async fn renew(
        &self,
        states: &[&Self],
        touched: &[(Window, Touched)],
        evaluator: &Evaluator,
        charges: &mut HashMap<Window, RecordBatch>,
    ) -> Result<usize, RateError> {
        let whole = Evaluation { fold: &self.fold, states, only: None };
        let mut groups = 0;
        let all: Vec<Window> = touched.iter().filter(|(_, touched)| *touched == Touched::All).map(|(window, _)| *window).collect();
        if !all.is_empty() {
            let found = whole.charges(&all, evaluator).await?;
            groups += found.groups;
            charges.extend(found.charges.into_iter().map(|found| (found.window, found.charges)));
        }
        let mut some = Vec::new();
        let mut only: HashSet<String> = HashSet::new();
        for (window, touched) in touched {
            if let Touched::Customers(customers) = touched {
                some.push(*window);
                only.extend(customers.iter().cloned());
            }
        }
        if some.is_empty() {
            return Ok(groups);
        }
        // In one execution for all windows: a customer that was not touched in one of them comes to the same there.
        let found = Evaluation { only: Some(&only), ..whole }.charges(&some, evaluator).await?;
        groups += found.groups;
        for WindowCharges { window, charges: renewed } in found.charges {
            let before = charges.remove(&window).unwrap_or_else(|| RecordBatch::new_empty(renewed.schema()));
            let spliced = spliced(&before, &renewed, &only).map_err(|error| self.unevaluated(&error))?;
            charges.insert(window, spliced);
        }
        Ok(groups)
    }

    /// What a later state has of these windows.
    fn touched_later(&self, later: &Self, windows: &[Window]) -> Result<BTreeMap<Window, Touched>, RateError> {
        let added: Added = later
            .points
            .iter()
            .enumerate()
            .flat_map(|(point, partials)| partials.batches().map(move |batch| (point, batch.clone())))
            .collect();
        let mut touched = touched_by(&self.fold, later, &added).map_err(|error| self.unevaluated(&error))?;
        if let Some(earliest) = later.openings.earliest() {
            touched.extend(windows.iter().filter(|window| window.start > earliest).map(|window| (*window, Touched::All)));
        }
        Ok(touched)
    }

    fn unevaluated(&self, error: &datafusion::common::DataFusionError) -> RateError {
        self.fold.failed(Window { start: 0, end: 0 }, Blame::default(), root_message(error))
    }
}

impl Fold {
    /// Whether charges depend on those of other rules or windows.
    fn reads_charges(&self) -> bool {
        self.rule.inputs.iter().any(|(input, _)| matches!(input, Input::Upstream(_) | Input::Earlier(_)))
    }
}

/// Charges with those of these customers in the place of theirs.
fn spliced(before: &RecordBatch, renewed: &RecordBatch, only: &HashSet<String>) -> Result<RecordBatch> {
    let of = |charges: &RecordBatch, wanted: bool| -> Result<RecordBatch> {
        let customers = customers_of(charges, 0)?;
        let kept: BooleanArray =
            customers.iter().map(|customer| Some(customer.is_some_and(|customer| only.contains(customer)) == wanted)).collect();
        Ok(filter_record_batch(charges, &kept)?)
    };
    Ok(concat_batches(&renewed.schema(), [&of(before, false)?, &of(renewed, true)?])?)
}

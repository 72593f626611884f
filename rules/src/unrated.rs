//! Usage that a rule claims, and what becomes of it before anything is summed.
//!
//! A rule *claims* an event of its windows that passes its conditions on usage columns alone, and *rates* it when a row
//! made of it reaches the lowest aggregate above usage, a window function, or the output. A claimed event that is not
//! rated was lost on the way: by a join that found no row for it, or by a condition. Where a query only asks whether there
//! is usage (EXISTS, IN and their negations), it claims none.
//!
//! Everything is told from the lifted plan, for many windows at once: what is claimed and what is rated are two plans, and
//! an anti join of the two is what is missing. Which step lost an event is asked of these few alone.

mod path;
mod places;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, DataFusionError, JoinType, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::utils::disjunction;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, create_udf, lit};
use datafusion::prelude::SessionContext;
use ratemill_schemas::time::instant_type;
use ratemill_schemas::windows::WindowError;
use ratemill_schemas::{Window, WindowSpec};

pub use path::Reason;
pub use places::{ASTRAY, Places};

use crate::evaluate::{Evaluator, LiftedSources, RateError, Upstream, between, lifted_over, planning_session, root_message};
use crate::lift::NotLifted;
use crate::rule::Rule;
use crate::window_set::{Lookup, WindowSet, lookup_function};
use path::{EVENT, Path, PathSources, paths};

/// The column of unrated usage with the number of the place that it belongs to.
pub const PLACE: &str = "__place";
/// The column with the number of a row of a batch.
const ROW: &str = "__row";
/// Ranges of time that a scan of usage names one by one.
const RANGES_MAX: usize = 32;

/// Why it cannot be said which usage a rule rates, in a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotAnalysed(String);

impl NotAnalysed {
    /// For this reason.
    #[must_use]
    pub fn because(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl From<DataFusionError> for NotAnalysed {
    fn from(error: DataFusionError) -> Self {
        Self(root_message(&error))
    }
}

impl From<WindowError> for NotAnalysed {
    fn from(error: WindowError) -> Self {
        Self(error.to_string())
    }
}

impl From<RateError> for NotAnalysed {
    fn from(error: RateError) -> Self {
        Self(error.to_string())
    }
}

impl From<NotLifted> for NotAnalysed {
    fn from(error: NotLifted) -> Self {
        match error {
            NotLifted::Shape(shape) => Self(format!("it runs window by window: {shape}")),
            NotLifted::Error(error) => error.into(),
        }
    }
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The rule does not claim it, or it is in none of the places.
    Unclaimed,
    /// Lost for the reason of this number.
    Lost(usize),
    /// It reached an aggregate or the output.
    Rated,
}

/// Events of one place by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Claimed events.
    pub claimed: i64,
    /// Of them, those that are rated.
    pub rated: i64,
}

/// Which usage of its windows a version of a rule claims and rates, with one version of the reference data.
pub struct Claims {
    context: SessionContext,
    usage: Arc<dyn TableProvider>,
    set: Arc<WindowSet>,
    places: Arc<Places>,
    paths: Vec<Path>,
    /// The log position from which on usage is looked at.
    from: Option<i64>,
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims").field("places", &self.places).field("paths", &self.paths).finish_non_exhaustive()
    }
}

fn column(name: &str) -> Expr {
    Expr::Column(Column::from_name(name))
}

impl Claims {
    /// How `rule` reads the usage of these places; `evaluator` has the usage, and the charges that the rule reads.
    ///
    /// # Errors
    /// [`NotAnalysed`] says why it cannot be told.
    pub async fn of(evaluator: &Evaluator, rule: &Rule, places: Places) -> Result<Self, NotAnalysed> {
        let windows: Vec<Window> = places.windows().iter().map(|rated| rated.window).collect();
        let reference = &evaluator.project.reference;
        let set = if windows.is_empty() { WindowSet::empty(rule, reference) } else { WindowSet::of(rule, reference, &windows)? };
        let set = Arc::new(set);
        let context = planning_session(evaluator, rule)?;
        let mut upstream = Upstream::new();
        let mut found = Self::paths(&context, evaluator, rule, &set, &upstream).await?;
        if found.iter().any(|path| path.reads_charges) {
            if rule.reads_itself() {
                return Err(NotAnalysed::because("it joins usage with its own earlier charges, so that windows follow each other"));
            }
            upstream = evaluator.upstream(rule, &set).await?;
            found = Self::paths(&context, evaluator, rule, &set, &upstream).await?;
        }
        Ok(Self { context, usage: Arc::clone(&evaluator.usage), set, places: Arc::new(places), paths: found, from: None })
    }

    async fn paths(
        context: &SessionContext,
        evaluator: &Evaluator,
        rule: &Rule,
        set: &Arc<WindowSet>,
        upstream: &Upstream,
    ) -> Result<Vec<Path>, NotAnalysed> {
        let inner = LiftedSources { evaluator, rule, set, upstream };
        let plan = lifted_over(context, &rule.query, &PathSources { inner: &inner }).await?;
        paths(&plan, rule)
    }

    /// The same of usage that the log holds from this position on.
    #[must_use]
    pub fn since(mut self, position: Option<i64>) -> Self {
        self.from = position;
        self
    }

    /// The places, which numbers in [`PLACE`] are of.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// The reason of a number.
    #[must_use]
    pub fn reason(&self, number: usize) -> Option<&Reason> {
        self.paths.iter().flat_map(|path| &path.steps).nth(number).map(|step| &step.reason)
    }

    /// Claimed events that are not rated: all columns of usage and [`PLACE`].
    ///
    /// # Errors
    /// [`NotAnalysed`] with what the query said.
    pub async fn unrated(&self) -> Result<SendableRecordBatchStream, NotAnalysed> {
        let plan = self.claimed_joined(JoinType::LeftAnti)?;
        Ok(self.context.execute_logical_plan(plan).await?.execute_stream().await?)
    }

    /// How many events of each place are claimed and rated; places without any are left out.
    ///
    /// # Errors
    /// [`NotAnalysed`] with what the query said.
    pub async fn counts(&self) -> Result<Vec<(i64, Counts)>, NotAnalysed> {
        let mut counts = std::collections::BTreeMap::<i64, Counts>::new();
        let claimed = self.by_place(self.claimed()?).await?;
        for (place, events) in claimed {
            counts.entry(place).or_default().claimed = events;
        }
        for (place, events) in self.by_place(self.claimed_joined(JoinType::LeftSemi)?).await? {
            counts.entry(place).or_default().rated = events;
        }
        Ok(counts.into_iter().collect())
    }

    async fn by_place(&self, plan: LogicalPlan) -> Result<Vec<(i64, i64)>, NotAnalysed> {
        let plan = LogicalPlanBuilder::from(plan).aggregate(vec![column(PLACE)], vec![count(lit(1_i64))])?.build()?;
        let mut found = Vec::new();
        for batch in self.context.execute_logical_plan(plan).await?.collect().await? {
            let (places, events) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
            found.extend(places.values().iter().copied().zip(events.values().iter().copied()));
        }
        Ok(found)
    }

    /// What becomes of each of these events, which have the columns of usage: of several ways that it can take, the
    /// furthest counts, and of several losses the first.
    ///
    /// # Errors
    /// [`NotAnalysed`] with what the query said.
    pub async fn fates(&self, events: &RecordBatch) -> Result<Vec<Fate>, NotAnalysed> {
        let mut fates = vec![Fate::Unclaimed; events.num_rows()];
        if events.num_rows() == 0 {
            return Ok(fates);
        }
        let table = Arc::new(self.numbered(events)?);
        let mut number = 0;
        for path in &self.paths {
            let source = || -> Result<LogicalPlan, DataFusionError> {
                let scan = LogicalPlanBuilder::scan(TableReference::bare("usage"), provider_as_source(Arc::clone(&table) as _), None)?;
                self.source(scan, column(ROW), path)
            };
            let claimed = LogicalPlanBuilder::from(source()?).project(vec![column(EVENT)])?.build()?;
            let mut alive = self.rows(claimed).await?;
            for step in &path.steps {
                if !alive.is_empty() {
                    let past = self.rows(step.over(source()?)?).await?;
                    for row in alive.difference(&past) {
                        set(&mut fates, *row, Fate::Lost(number));
                    }
                    alive = past;
                }
                number += 1;
            }
            for row in alive {
                set(&mut fates, row, Fate::Rated);
            }
        }
        Ok(fates)
    }

    /// The columns of usage, and the number of each row.
    fn numbered(&self, events: &RecordBatch) -> Result<MemTable, DataFusionError> {
        let usage = self.usage.schema();
        let mut fields: Vec<Field> = Vec::with_capacity(usage.fields().len() + 1);
        let mut columns = Vec::with_capacity(usage.fields().len() + 1);
        for field in usage.fields() {
            let column = events.column_by_name(field.name());
            columns.push(match column {
                Some(column) => arrow::compute::cast(column, field.data_type())?,
                None => arrow::array::new_null_array(field.data_type(), events.num_rows()),
            });
            fields.push(field.as_ref().clone().with_nullable(field.is_nullable() || column.is_none()));
        }
        fields.push(Field::new(ROW, DataType::Int64, false));
        columns.push(Arc::new(Int64Array::from_iter_values((0..events.num_rows()).map(|row| i64::try_from(row).unwrap_or(i64::MAX)))));
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        MemTable::try_new(schema, vec![vec![batch]])
    }

    async fn rows(&self, plan: LogicalPlan) -> Result<HashSet<i64>, NotAnalysed> {
        let batches = self.context.execute_logical_plan(plan).await?.collect().await?;
        Ok(batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect())
    }

    /// Claimed events, and how they join with those that are rated.
    fn claimed_joined(&self, kind: JoinType) -> Result<LogicalPlan, DataFusionError> {
        const REACHED: &str = "__reached";
        let claimed = self.claimed()?;
        let mut rated: Option<LogicalPlanBuilder> = None;
        for path in &self.paths {
            let source = self.source(self.scan()?, column("log_position"), path)?;
            let reached = match path.steps.last() {
                Some(last) => last.over(source)?,
                None => LogicalPlanBuilder::from(source).project(vec![column(EVENT)])?.build()?,
            };
            let reached = LogicalPlanBuilder::from(reached).project(vec![column(EVENT).alias(REACHED)])?;
            rated = Some(match rated {
                Some(rated) => rated.union(reached.build()?)?,
                None => reached,
            });
        }
        // Without a path nothing is claimed.
        let Some(rated) = rated else { return Ok(claimed) };
        let keys = (vec![Column::from_name(EVENT)], vec![Column::from_name(REACHED)]);
        LogicalPlanBuilder::from(claimed).join(rated.build()?, kind, keys, None)?.build()
    }

    /// Claimed events: the columns of usage, [`PLACE`] and the event's number.
    fn claimed(&self) -> Result<LogicalPlan, DataFusionError> {
        let mut scan = self.scan()?;
        if self.paths.is_empty() {
            scan = scan.filter(lit(false))?;
        } else if let Some(claims) = self.paths.iter().map(|path| path.claim.clone()).collect::<Option<Vec<Expr>>>().and_then(disjunction) {
            scan = scan.filter(claims)?;
        }
        let mut columns = self.columns();
        columns.push(self.place().alias(PLACE));
        columns.push(column("log_position").alias(EVENT));
        scan.project(columns)?.filter(column(PLACE).is_not_null())?.build()
    }

    fn columns(&self) -> Vec<Expr> {
        self.usage.schema().fields().iter().map(|field| column(field.name())).collect()
    }

    fn place(&self) -> Expr {
        self.places.function().call(vec![column("time"), column("subject")])
    }

    /// Usage in the time of the places.
    fn scan(&self) -> Result<LogicalPlanBuilder, DataFusionError> {
        let ranges = self.places.ranges();
        let filter = match (ranges.first(), ranges.last()) {
            (Some(first), Some(last)) if ranges.len() > RANGES_MAX => between(first.start, last.end),
            _ => ranges.iter().map(|range| between(range.start, range.end)).reduce(Expr::or).unwrap_or_else(|| lit(false)),
        };
        let scan = LogicalPlanBuilder::scan(TableReference::bare("usage"), provider_as_source(Arc::clone(&self.usage)), None)?;
        let scan = scan.filter(filter)?;
        match self.from {
            Some(from) => scan.filter(column("log_position").gt_eq(lit(from))),
            None => Ok(scan),
        }
    }

    /// The claimed events of a path as its first node wants them.
    fn source(&self, scan: LogicalPlanBuilder, event: Expr, path: &Path) -> Result<LogicalPlan, DataFusionError> {
        let scan = match &path.claim {
            Some(claim) => scan.filter(claim.clone())?,
            None => scan,
        };
        let lookup = lookup_function(Lookup::Holding, &self.set);
        let number =
            if self.set.by_contract() { lookup.call(vec![column("time"), column("subject")]) } else { lookup.call(vec![column("time")]) };
        let mut columns = self.columns();
        columns.push(number.alias(&path.window));
        columns.push(event.alias(EVENT));
        scan.filter(self.place().is_not_null())?.project(columns)?.build()
    }
}

fn set(fates: &mut [Fate], row: i64, fate: Fate) {
    let Some(known) = usize::try_from(row).ok().and_then(|row| fates.get_mut(row)) else { return };
    if *known == Fate::Unclaimed || fate == Fate::Rated {
        *known = fate;
    }
}

/// Events that no rule of the evaluator's project claims: all columns of usage. Of a rule that cannot be analysed, all
/// usage of its meters counts as claimed; those rules are returned, too, and why.
///
/// # Errors
/// [`NotAnalysed`] with what the query said.
pub async fn unclaimed(evaluator: &Evaluator) -> Result<(SendableRecordBatchStream, Vec<(String, NotAnalysed)>), NotAnalysed> {
    let mut scan = LogicalPlanBuilder::scan(TableReference::bare("usage"), provider_as_source(Arc::clone(&evaluator.usage)), None)?;
    let mut unknown = Vec::new();
    for rule in evaluator.project.rules.iter().filter(|rule| rule.reads_usage) {
        let claims = match Claims::of(evaluator, rule, Places::default()).await {
            Ok(claims) if claims.paths.is_empty() => continue,
            Ok(claims) => claims.paths.iter().map(|path| path.claim.clone()).collect::<Option<Vec<Expr>>>().and_then(disjunction),
            Err(reason) => {
                unknown.push((rule.name.clone(), reason));
                rule.meters.as_ref().map(|meters| column("meter").in_list(meters.iter().map(|meter| lit(meter.as_str())).collect(), false))
            }
        };
        let in_force = in_force(rule, evaluator).call(vec![column("time"), column("subject")]);
        let claimed = claims.map_or_else(|| in_force.clone(), |claims| in_force.clone().and(claims));
        scan = scan.filter(claimed.is_not_true())?;
    }
    let context = crate::session::session(Arc::clone(&evaluator.runtime), &evaluator.limits);
    let stream = context.execute_logical_plan(scan.build()?).await?.execute_stream().await?;
    Ok((stream, unknown))
}

/// Whether the rule has a window for usage of a time and subject; usage without a contract would have one.
fn in_force(rule: &Rule, evaluator: &Evaluator) -> datafusion::logical_expr::ScalarUDF {
    let (rule, project) = (rule.clone(), Arc::clone(&evaluator.project));
    let has_window = move |time: i64, subject: &str| {
        // What is before the first window opens it, where readings are carried on.
        if !rule.options.carry.is_empty() && time < rule.options.effective_from {
            return true;
        }
        match rule.window_of(&project.reference, subject, time) {
            Ok(Some(window)) => rule.in_force_at(window.start),
            _ => rule.options.window == WindowSpec::BillingPeriod && rule.in_force_at(time),
        }
    };
    create_udf(
        "rule_in_force",
        vec![instant_type(), DataType::Utf8],
        DataType::Boolean,
        datafusion::logical_expr::Volatility::Immutable,
        places::of_rows(move |times, subjects| {
            let found = (0..times.len()).map(|row| Some(has_window(times.value(row), subjects.value(row))));
            Arc::new(found.collect::<arrow::array::BooleanArray>())
        }),
    )
}

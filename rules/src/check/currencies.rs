//! Sums of amounts of several currencies, seen through CTEs, subqueries and UNION: charges of a rule have the currency of
//! their row, so a sum of them is grouped by it, or the rows have one.

use std::collections::BTreeSet;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::expr::{AggregateFunction, Case, Exists, InList, InSubquery, WindowFunction};
use datafusion::logical_expr::utils::{grouping_set_to_exprlist, split_conjunction};
use datafusion::logical_expr::{
    Aggregate, BinaryExpr, Distinct, Expr, ExprSchemable, Join, JoinType, LogicalPlan, Operator, TableScan, Window,
};
use sqlparser::ast::{Expr as WrittenExpr, Query};

use super::Reading;
use crate::diagnostics::Place;
use crate::tree::call_name;

/// Finds the sums of `plan` that add amounts of several currencies; `written` is the query before it was planned.
pub(super) fn check(plan: &LogicalPlan, written: &Query, reading: &mut Reading<'_>) {
    let mut lineage = Lineage { rules: reading.rules, scans: 0, mixed: Vec::new() };
    lineage.columns(plan);
    let mut known: Vec<Option<Place>> = Vec::new();
    for mixed in lineage.mixed {
        let place = mixed.amount.spans.first().and_then(|span| {
            let amount = Place {
                line: span.start.line,
                column: span.start.column,
                end_line: span.end.line,
                end_column: span.end.column.max(span.start.column + 1),
            };
            sum_around(amount, written, reading).or(Some(amount))
        });
        // A CTE that is read twice is planned twice.
        if known.contains(&place) {
            continue;
        }
        known.push(place);
        let table = mixed.amount.relation.as_ref().map_or_else(String::new, |table| format!("{}.", table.table()));
        let help = match &mixed.currency {
            Some(currency) if mixed.running => format!("add {currency} to PARTITION BY, or convert(…) each amount"),
            Some(currency) => format!("add {currency} to GROUP BY, or convert(…) each amount"),
            None => format!("return currency beside `{table}{}` and group by it, or convert(…) each amount", mixed.amount.name),
        };
        let message = "amounts of several currencies in one sum";
        if mixed.of_contract {
            let message = format!("{message} where the currency of a contract changes");
            reading.warn("mixed-currencies", place, message, &help);
        } else if mixed.running {
            reading.warn("mixed-currencies", place, message, &help);
        } else {
            reading.error("mixed-currencies", place, message, &help);
        }
    }
}

/// The innermost call of `sum` that holds a place.
fn sum_around(inner: Place, written: &Query, reading: &Reading<'_>) -> Option<Place> {
    let mut found: Option<Place> = None;
    let _: std::ops::ControlFlow<()> = sqlparser::ast::visit_expressions(written, |expr| {
        if let WrittenExpr::Function(call) = expr
            && call_name(call).as_deref() == Some("sum")
            && let Some(place) = reading.source.of(expr)
            && (place.line, place.column) <= (inner.line, inner.column)
            && (inner.end_line, inner.end_column) <= (place.end_line, place.end_column)
        {
            // Calls that hold others come first.
            found = Some(place);
        }
        std::ops::ControlFlow::Continue(())
    });
    found
}

/// What a column holds of the charges that are read, each scan of a rule having a number.
#[derive(Debug, Clone, Default)]
struct Holds {
    /// Amounts in the currency of the row of these scans.
    amounts: BTreeSet<usize>,
    /// The currency of the row of these scans.
    currencies: BTreeSet<usize>,
    /// The contract of the row of these scans, which seldom has several currencies.
    contracts: BTreeSet<usize>,
}

impl Holds {
    fn add(&mut self, other: Self) {
        self.amounts.extend(other.amounts);
        self.currencies.extend(other.currencies);
        self.contracts.extend(other.contracts);
    }
}

/// A sum over several currencies.
struct Mixed {
    /// A column of the sum that holds the amounts.
    amount: Column,
    /// The column beside it that holds their currency.
    currency: Option<String>,
    /// Whether it is a window function.
    running: bool,
    /// Whether the rows are of one contract.
    of_contract: bool,
}

struct Lineage<'a> {
    /// Names of rules, which can be read like tables.
    rules: &'a BTreeSet<String>,
    scans: usize,
    mixed: Vec<Mixed>,
}

/// The columns below a node, by name.
struct Scope<'a> {
    schema: &'a DFSchema,
    columns: &'a [Holds],
}

impl Lineage<'_> {
    /// What each column of a plan holds.
    fn columns(&mut self, plan: &LogicalPlan) -> Vec<Holds> {
        self.subqueries(plan);
        let mut columns = match plan {
            LogicalPlan::TableScan(scan) => self.scan(scan),
            LogicalPlan::Projection(projection) => {
                let below = self.columns(&projection.input);
                let scope = Scope { schema: projection.input.schema(), columns: &below };
                projection.expr.iter().map(|expr| scope.holds(expr)).collect()
            }
            LogicalPlan::Filter(filter) => {
                let mut columns = self.columns(&filter.input);
                let scans: BTreeSet<usize> = (0..self.scans).collect();
                restrict(&split_conjunction(&filter.predicate), filter.input.schema(), &mut columns, &scans);
                columns
            }
            LogicalPlan::Join(join) => self.join(join),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate),
            LogicalPlan::Window(window) => self.window(window),
            LogicalPlan::Union(union) => {
                let mut inputs = union.inputs.iter().map(|input| self.columns(input)).collect::<Vec<_>>().into_iter();
                let mut all = inputs.next().unwrap_or_default();
                for columns in inputs {
                    all.iter_mut().zip(columns).for_each(|(column, other)| column.add(other));
                }
                all
            }
            LogicalPlan::Distinct(Distinct::On(distinct)) => {
                let below = self.columns(&distinct.input);
                let scope = Scope { schema: distinct.input.schema(), columns: &below };
                distinct.select_expr.iter().map(|expr| scope.holds(expr)).collect()
            }
            LogicalPlan::Unnest(unnest) => {
                let below = self.columns(&unnest.input);
                unnest.dependency_indices.iter().map(|index| below.get(*index).cloned().unwrap_or_default()).collect()
            }
            LogicalPlan::Subquery(subquery) => self.columns(&subquery.subquery),
            other => match other.inputs().as_slice() {
                [input] if input.schema().fields().len() == other.schema().fields().len() => self.columns(input),
                inputs => {
                    inputs.iter().for_each(|input| drop(self.columns(input)));
                    Vec::new()
                }
            },
        };
        columns.resize(plan.schema().fields().len(), Holds::default());
        columns
    }

    /// The queries in the expressions of a node.
    fn subqueries(&mut self, plan: &LogicalPlan) {
        let mut found = Vec::new();
        let _ = plan.apply_expressions(|root| {
            root.apply(|expr| {
                if let Expr::ScalarSubquery(subquery)
                | Expr::Exists(Exists { subquery, .. })
                | Expr::InSubquery(InSubquery { subquery, .. }) = expr
                {
                    found.push(std::sync::Arc::clone(&subquery.subquery));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        });
        found.iter().for_each(|query| drop(self.columns(query)));
    }

    fn scan(&mut self, scan: &TableScan) -> Vec<Holds> {
        if !self.rules.contains(scan.table_name.table()) {
            return Vec::new();
        }
        let number = self.scans;
        self.scans += 1;
        let holds = |field: &arrow::datatypes::FieldRef| match field.name().as_str() {
            "amount" => Holds { amounts: BTreeSet::from([number]), ..Holds::default() },
            "currency" => Holds { currencies: BTreeSet::from([number]), ..Holds::default() },
            "contract_id" => Holds { contracts: BTreeSet::from([number]), ..Holds::default() },
            _ => Holds::default(),
        };
        scan.projected_schema.fields().iter().map(holds).collect()
    }

    fn join(&mut self, join: &Join) -> Vec<Holds> {
        let first = self.scans;
        let left = self.columns(&join.left);
        let second = self.scans;
        let right = self.columns(&join.right);
        let mut columns = [left, right].concat();
        let Ok(schema) = join.left.schema().join(join.right.schema()) else { return columns };
        // An outer join keeps the rows of a side whatever ON says.
        let restricted: BTreeSet<usize> = match join.join_type {
            JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi => (first..self.scans).collect(),
            JoinType::Left => (second..self.scans).collect(),
            JoinType::Right => (first..second).collect(),
            _ => BTreeSet::new(),
        };
        let pairs: Vec<Expr> = join.on.iter().map(|(left, right)| left.clone().eq(right.clone())).collect();
        let conditions: Vec<&Expr> = pairs.iter().chain(join.filter.iter().flat_map(|filter| split_conjunction(filter))).collect();
        restrict(&conditions, &schema, &mut columns, &restricted);
        match join.join_type {
            JoinType::RightSemi | JoinType::RightAnti => columns.split_off(join.left.schema().fields().len()),
            _ => columns,
        }
    }

    fn aggregate(&mut self, aggregate: &Aggregate) -> Vec<Holds> {
        let below = self.columns(&aggregate.input);
        let scope = Scope { schema: aggregate.input.schema(), columns: &below };
        let keys = grouping_set_to_exprlist(&aggregate.group_expr).unwrap_or_default();
        let mut columns: Vec<Holds> = keys.iter().map(|key| scope.holds(key)).collect();
        let rolled_up = matches!(aggregate.group_expr.as_slice(), [Expr::GroupingSet(_)]);
        let grouped = if rolled_up { Holds::default() } else { all(&columns) };
        let groups = aggregate.schema.fields().len().saturating_sub(aggregate.aggr_expr.len());
        columns.resize(groups, Holds::default());
        for expr in &aggregate.aggr_expr {
            columns.push(match unaliased(expr) {
                Expr::AggregateFunction(AggregateFunction { func, params }) => {
                    let filter = params.filter.as_deref();
                    self.total(func.name(), &params.args, filter, &grouped, &scope, false)
                }
                other => scope.holds(other),
            });
        }
        columns
    }

    fn window(&mut self, window: &Window) -> Vec<Holds> {
        let mut columns = self.columns(&window.input);
        let below = columns.clone();
        let scope = Scope { schema: window.input.schema(), columns: &below };
        for expr in &window.window_expr {
            columns.push(match unaliased(expr) {
                Expr::WindowFunction(call) => {
                    let WindowFunction { fun, params } = call.as_ref();
                    let keys: Vec<Holds> = params.partition_by.iter().map(|key| scope.holds(key)).collect();
                    let grouped = all(&keys);
                    self.total(fun.name(), &params.args, params.filter.as_deref(), &grouped, &scope, true)
                }
                other => scope.holds(other),
            });
        }
        columns
    }

    /// What an aggregate of rows with these keys holds; a sum over others is kept as a finding.
    fn total(&mut self, name: &str, arguments: &[Expr], filter: Option<&Expr>, grouped: &Holds, scope: &Scope<'_>, running: bool) -> Holds {
        if name == "count" {
            return Holds::default();
        }
        let Some(argument) = arguments.first() else { return Holds::default() };
        let fixed = filter.map_or_else(BTreeSet::new, |filter| scope.fixed(&split_conjunction(filter)));
        let mut holds = scope.holds(argument);
        holds.amounts.retain(|scan| !fixed.contains(scan));
        let several: BTreeSet<usize> = holds.amounts.difference(&grouped.currencies).copied().collect();
        if name == "sum" && !several.is_empty() {
            let of_amounts = |column: &&Column| !scope.column(column).amounts.is_disjoint(&several);
            if let Some(amount) = in_order(argument).iter().find(of_amounts) {
                let currency = scope.currency(&several, amount);
                let of_contract = grouped.contracts.is_superset(&several);
                self.mixed.push(Mixed { amount: amount.clone(), currency, running, of_contract });
            }
            // What is made of this sum would only repeat it.
            holds.amounts.retain(|scan| grouped.currencies.contains(scan));
        }
        holds
    }
}

impl Scope<'_> {
    fn column(&self, column: &Column) -> Holds {
        let index = self.schema.index_of_column(column).ok();
        index.and_then(|index| self.columns.get(index)).cloned().unwrap_or_default()
    }

    /// The name of a column with the currency of these scans.
    fn currency(&self, scans: &BTreeSet<usize>, amount: &Column) -> Option<String> {
        let names =
            self.schema.iter().zip(self.columns).filter(|(_, holds)| holds.currencies.is_superset(scans)).map(|((table, field), _)| {
                let is_beside = table.map(|table| table.table()) == amount.relation.as_ref().map(|table| table.table());
                (!is_beside, Column::new(table.cloned(), field.name()).flat_name())
            });
        names.min_by_key(|(is_of_other, _)| *is_of_other).map(|(_, name)| name)
    }

    fn holds(&self, expr: &Expr) -> Holds {
        let mut holds = match expr {
            Expr::Column(column) => return self.column(column),
            Expr::Alias(alias) => return self.holds(&alias.expr),
            Expr::Case(case) => self.case(case),
            Expr::ScalarFunction(call) if call.name() == "convert" => {
                // An amount in the currency that is asked for.
                let into = call.args.get(2).map_or_else(Holds::default, |into| self.holds(into));
                Holds { amounts: into.currencies, ..Holds::default() }
            }
            Expr::ScalarSubquery(_) | Expr::Exists(_) | Expr::InSubquery(_) => return Holds::default(),
            other => {
                let mut all = Holds::default();
                let _ = other.apply_children(|part| {
                    all.add(self.holds(part));
                    Ok(TreeNodeRecursion::Continue)
                });
                all
            }
        };
        if let Ok(data_type) = expr.get_type(self.schema) {
            if data_type.is_numeric() {
                holds.currencies.clear();
                holds.contracts.clear();
            } else {
                holds.amounts.clear();
            }
        }
        holds
    }

    /// Amounts of one currency under `WHEN currency = 'EUR'` are of one currency.
    fn case(&self, case: &Case) -> Holds {
        let mut all = case.else_expr.as_ref().map_or_else(Holds::default, |otherwise| self.holds(otherwise));
        for (when, then) in &case.when_then_expr {
            let fixed = match &case.expr {
                Some(value) => self.fixed(&[&value.as_ref().clone().eq(when.as_ref().clone())]),
                None => self.fixed(&split_conjunction(when)),
            };
            let mut holds = self.holds(then);
            holds.amounts.retain(|scan| !fixed.contains(scan));
            all.add(holds);
        }
        all
    }

    /// The scans whose rows have one currency under these conditions.
    fn fixed(&self, conditions: &[&Expr]) -> BTreeSet<usize> {
        let mut fixed = BTreeSet::new();
        for condition in conditions {
            match condition {
                Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
                    let (left, right) = (self.holds(left).currencies, self.holds(right).currencies);
                    // The currency of a contract is that of its charges: the author says which rows those are.
                    if left.is_empty() || right.is_empty() {
                        fixed.extend(left.into_iter().chain(right));
                    }
                }
                Expr::InList(InList { expr, list, negated: false }) if list.len() == 1 => fixed.extend(self.holds(expr).currencies),
                _ => {}
            }
        }
        fixed
    }
}

/// Minds conditions on currencies: what has one is of no account, and columns that are equal hold the same.
fn restrict(conditions: &[&Expr], schema: &DFSchema, columns: &mut [Holds], scans: &BTreeSet<usize>) {
    for condition in conditions {
        let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) = condition else { continue };
        let (Expr::Column(left), Expr::Column(right)) = (unaliased(left), unaliased(right)) else { continue };
        let (Ok(left), Ok(right)) = (schema.index_of_column(left), schema.index_of_column(right)) else { continue };
        let contracts: BTreeSet<usize> = columns[left].contracts.union(&columns[right].contracts).copied().collect();
        columns[left].contracts.clone_from(&contracts);
        columns[right].contracts = contracts;
        let both: BTreeSet<usize> = columns[left].currencies.union(&columns[right].currencies).copied().collect();
        if !columns[left].currencies.is_empty() && !columns[right].currencies.is_empty() {
            columns[left].currencies.clone_from(&both);
            columns[right].currencies = both;
        }
    }
    let fixed = Scope { schema, columns }.fixed(conditions);
    for column in columns {
        column.amounts.retain(|scan| !fixed.contains(scan) || !scans.contains(scan));
    }
}

/// What all of them hold together.
fn all(columns: &[Holds]) -> Holds {
    columns.iter().cloned().fold(Holds::default(), |mut all, column| {
        all.add(column);
        all
    })
}

fn unaliased(expr: &Expr) -> &Expr {
    match expr {
        Expr::Alias(alias) => unaliased(&alias.expr),
        Expr::Cast(cast) => unaliased(&cast.expr),
        other => other,
    }
}

/// The columns of an expression as they stand in it.
fn in_order(expr: &Expr) -> Vec<Column> {
    let mut found = Vec::new();
    let _ = expr.apply(|part| {
        if let Expr::Column(column) = part {
            found.push(column.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use ratemill_schemas::UsageSchema;
    use ratemill_schemas::usage::{Dimension, DimensionType};

    use crate::diagnostics::{Diagnostics, Severity};
    use crate::project::RuleProject;
    use crate::reference::ReferenceData;

    /// What is said of a rule over the rules `a` and `b`.
    async fn said(query: &str) -> Vec<(Severity, String)> {
        let dimension = |name: &str| Dimension { name: name.to_owned(), kind: DimensionType::Text };
        let usage = Arc::new(UsageSchema::new(vec![dimension("paid_in"), dimension("plan")]));
        let head = |name: &str| format!("CREATE MATERIALIZED VIEW {name} WITH (window = 'month', effective_from = '2026-01-01') AS\n");
        let own = |name: &str| {
            let query = "SELECT u.subject AS customer_id, u.plan AS contract_id, u.paid_in AS currency, 'Own' AS item, u.plan,
                sum(u.quantity) AS amount FROM usage u GROUP BY u.subject, u.paid_in, u.plan";
            (format!("{name}.sql"), head(name) + query)
        };
        let rules = vec![own("a"), own("b"), ("total.sql".to_owned(), head("total") + query)];
        let found = match RuleProject::check(rules, ReferenceData::default(), usage, Diagnostics::default()).await {
            Ok((_, warnings)) => warnings,
            Err(errors) => errors,
        };
        found.0.into_iter().map(|found| (found.severity, format!("{}: {}", found.code, found.help.unwrap_or_default()))).collect()
    }

    async fn sound(query: &str) {
        assert_eq!(said(query).await, [], "{query}");
    }

    async fn mixed(query: &str, help: &str) {
        let help = format!("mixed-currencies: {help}, or convert(…) each amount");
        assert_eq!(said(query).await, [(Severity::Error, help)], "{query}");
    }

    const RETURNED: &str = "x.customer_id, 'GBP' AS currency, 'Total' AS item, sum(x.amount) AS amount";

    #[tokio::test]
    async fn sums_are_grouped_by_the_currency_of_their_rows() {
        let add = "add x.currency to GROUP BY";
        mixed(&format!("SELECT {RETURNED} FROM a x GROUP BY 1"), add).await;
        mixed(&format!("SELECT {RETURNED} FROM a x GROUP BY ALL"), add).await;
        mixed(&format!("SELECT {RETURNED} FROM (SELECT * FROM a) x GROUP BY x.customer_id"), add).await;
        let without = "return currency beside `x.amount` and group by it";
        mixed(&format!("SELECT {RETURNED} FROM (SELECT a.customer_id, a.amount FROM a) x GROUP BY x.customer_id"), without).await;
        let both = "SELECT a.customer_id, a.amount FROM a UNION ALL SELECT b.customer_id, 2 * b.amount FROM b";
        mixed(&format!("WITH x AS ({both}) SELECT {RETURNED} FROM x GROUP BY x.customer_id"), without).await;
        // One of the sides says another currency than that of its rows.
        let other = "SELECT a.customer_id, a.amount, a.currency FROM a UNION ALL SELECT b.customer_id, b.amount, 'GBP' FROM b";
        mixed(&format!("WITH x AS ({other}) SELECT {RETURNED} FROM x GROUP BY x.customer_id, x.currency"), without).await;
        let inner = "SELECT a.customer_id, sum(a.amount) AS spent FROM a GROUP BY a.customer_id";
        mixed(
            &format!("WITH x AS ({inner}) SELECT x.customer_id, 'GBP' AS currency, 'T' AS item, sum(x.spent) AS amount FROM x GROUP BY 1"),
            "add a.currency to GROUP BY",
        )
        .await;
    }

    #[tokio::test]
    async fn sums_of_one_currency_are_sound() {
        let total = "x.customer_id, x.currency, 'Total' AS item, sum(x.amount) AS amount";
        for query in [
            format!("SELECT {total} FROM a x GROUP BY 1, 2"),
            format!("SELECT {total} FROM a x GROUP BY ALL"),
            format!("SELECT {RETURNED} FROM a x WHERE x.currency = 'GBP' GROUP BY x.customer_id"),
            format!("SELECT {RETURNED} FROM (SELECT a.* FROM a WHERE a.currency IN ('GBP')) x GROUP BY x.customer_id"),
            format!("SELECT {RETURNED} FROM (SELECT b.* FROM b JOIN a ON a.currency = 'GBP' AND b.currency = a.currency) x GROUP BY 1"),
            "SELECT x.customer_id, 'GBP' AS currency, 'T' AS item, sum(x.amount) FILTER (WHERE x.currency = 'GBP') AS amount FROM a x GROUP BY 1"
                .to_owned(),
            "SELECT x.customer_id, 'GBP' AS currency, 'T' AS item, sum(CASE WHEN x.currency = 'GBP' THEN x.amount ELSE 0 END) AS amount
             FROM a x GROUP BY x.customer_id"
                .to_owned(),
            format!(
                "WITH x AS (SELECT a.customer_id, a.currency, a.amount FROM a UNION ALL SELECT b.customer_id, b.currency, b.amount FROM b),
                 spent AS (SELECT x.customer_id, x.currency AS paid_in, sum(x.amount) AS amount FROM x GROUP BY 1, 2)
                 SELECT {} FROM spent x GROUP BY x.customer_id, x.paid_in",
                total.replace("x.currency", "x.paid_in AS currency")
            ),
            "SELECT x.customer_id, x.currency, 'Count' AS item, count(x.amount) AS amount FROM a x GROUP BY 1, 2".to_owned(),
        ] {
            let said = said(&query).await;
            assert!(said.iter().all(|(severity, text)| *severity == Severity::Warning && !text.contains("currencies")), "{query}: {said:?}");
        }
        sound(&format!("SELECT {total} FROM a x GROUP BY x.customer_id, x.currency")).await;
    }

    #[tokio::test]
    async fn running_sums_of_several_currencies_are_warned_of() {
        let running = |keys: &str| {
            format!(
                "SELECT x.customer_id, x.currency, 'T' AS item, x.plan, x.contract_id,
                 sum(x.amount) OVER (PARTITION BY {keys} ORDER BY x.plan) AS amount FROM a x"
            )
        };
        let add = "mixed-currencies: add x.currency to PARTITION BY, or convert(…) each amount".to_owned();
        assert_eq!(said(&running("x.customer_id")).await, [(Severity::Warning, add)]);
        sound(&running("x.customer_id, x.currency")).await;
    }

    #[tokio::test]
    async fn sums_of_a_contract_are_warned_of() {
        let spent = "WITH x AS (SELECT a.contract_id, a.currency, a.amount FROM a),
            s AS (SELECT x.contract_id, sum(x.amount) AS amount FROM x GROUP BY x.contract_id)
            SELECT s.contract_id AS customer_id, 'GBP' AS currency, 'Spent' AS item, s.amount FROM s";
        let add = "mixed-currencies: add x.currency to GROUP BY, or convert(…) each amount".to_owned();
        assert_eq!(said(spent).await, [(Severity::Warning, add)]);
        sound(&spent.replace("GROUP BY x.contract_id", "GROUP BY x.contract_id, x.currency")).await;
    }
}

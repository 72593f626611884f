//! Every expression of a query with its type, so that what is wrong with one is said where it stands.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{DFSchema, DFSchemaRef};
use datafusion::execution::SessionState;
use datafusion::logical_expr::ExprSchemable;
use datafusion::sql::parser::Statement as PlanStatement;
use ratemill_schemas::Rounding;
use sqlparser::ast::{
    Cte, Expr, ExprWithAlias, GroupByExpr, JoinConstraint, JoinOperator, Query, Select, SelectItem, SetExpr, Statement, TableFactor, Value,
    Visit, VisitMut, Visitor, VisitorMut, With,
};

use crate::plain::Plain;
use crate::tree::{join_constraint, selects};

/// A SELECT and what it can name.
pub(super) struct Scope {
    pub(super) select: Select,
    /// The CTEs before it.
    ctes: Vec<Cte>,
    /// The SELECT around it, whose columns it can name.
    outer: Option<usize>,
    /// Columns of its FROM; `None` where they could not be had.
    columns: Option<DFSchemaRef>,
}

/// Types of expressions in the scope of one SELECT.
pub(super) struct Types<'a> {
    state: &'a SessionState,
    rounding: Option<Rounding>,
    own: &'a DFSchema,
    joined: Option<DFSchema>,
}

/// Every SELECT of the query, inner ones after those around them.
pub(super) async fn scopes(query: &Query, state: &SessionState, rounding: Option<Rounding>) -> Vec<Scope> {
    let mut scopes = Vec::new();
    collect(query, &[], None, &mut scopes);
    for scope in &mut scopes {
        scope.columns = columns(scope, state, rounding).await;
    }
    scopes
}

impl Scope {
    /// The types in this scope; `None` where its columns are not known.
    pub(super) fn types<'a>(&'a self, scopes: &'a [Self], state: &'a SessionState, rounding: Option<Rounding>) -> Option<Types<'a>> {
        let own = self.columns.as_deref()?;
        let mut joined = own.clone();
        let mut outer = self.outer;
        while let Some(index) = outer {
            if let Some(columns) = &scopes[index].columns
                && let Ok(both) = joined.join(columns)
            {
                joined = both;
            }
            outer = scopes[index].outer;
        }
        Some(Types { state, rounding, own, joined: self.outer.is_some().then_some(joined) })
    }

    /// Its expressions without those of subqueries, parts before the whole.
    pub(super) fn expressions(&self) -> Vec<Expr> {
        let mut all = Vec::new();
        for expr in self.roots() {
            let _ = expr.visit(&mut Parts { all: &mut all, queries: 0 });
        }
        all
    }

    fn roots(&self) -> Vec<&Expr> {
        let Select { projection, from, selection, group_by, having, qualify, .. } = &self.select;
        let mut roots: Vec<&Expr> = projection
            .iter()
            .filter_map(|item| match item {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => Some(expr),
                _ => None,
            })
            .collect();
        for join in from.iter().flat_map(|item| &item.joins) {
            if let Some(JoinConstraint::On(on)) = join_constraint(join) {
                roots.push(on);
            }
        }
        roots.extend(selection);
        if let GroupByExpr::Expressions(keys, _) = group_by {
            roots.extend(keys);
        }
        roots.extend(having.iter().chain(qualify));
        roots
    }
}

impl Types<'_> {
    /// The type of an expression; `None` where it has none by itself.
    pub(super) fn of(&self, expr: &Expr) -> Option<DataType> {
        self.plan(expr).ok()
    }

    /// The type of an expression, or why it has none.
    pub(super) fn plan(&self, expr: &Expr) -> datafusion::common::Result<DataType> {
        let plan = |scope: &DFSchema| {
            let mut expr = expr.clone();
            let _ = VisitMut::visit(&mut expr, &mut Plain { rounding: self.rounding });
            let planned = self.state.create_logical_expr_from_sql_expr(ExprWithAlias { expr, alias: None }, scope)?;
            planned.get_type(scope)
        };
        match (plan(self.own), &self.joined) {
            (Err(_), Some(joined)) => plan(joined),
            (result, _) => result,
        }
    }
}

fn collect(query: &Query, ctes: &[Cte], outer: Option<usize>, scopes: &mut Vec<Scope>) {
    let mut ctes = ctes.to_vec();
    for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
        collect(&cte.query, &ctes, None, scopes);
        ctes.push(cte.clone());
    }
    for select in selects(&query.body) {
        let index = scopes.len();
        scopes.push(Scope { select: select.clone(), ctes: ctes.clone(), outer, columns: None });
        for factor in crate::tree::relations(select) {
            if let TableFactor::Derived { subquery, .. } = factor {
                collect(subquery, &ctes, None, scopes);
            }
        }
        let mut inner = Subqueries { found: Vec::new(), depth: 0 };
        let roots: Vec<Expr> = scopes[index].roots().into_iter().cloned().collect();
        for root in roots {
            let _ = root.visit(&mut inner);
        }
        for query in inner.found {
            collect(&query, &ctes, Some(index), scopes);
        }
    }
}

/// What `SELECT *` of the same FROM can name.
async fn columns(scope: &Scope, state: &SessionState, rounding: Option<Rounding>) -> Option<DFSchemaRef> {
    let mut select = scope.select.clone();
    select.projection = vec![SelectItem::Wildcard(sqlparser::ast::WildcardAdditionalOptions::default())];
    (select.distinct, select.selection, select.having, select.qualify) = (None, None, None, None);
    select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
    select.named_window = Vec::new();
    if select.from.is_empty() {
        return Some(Arc::new(DFSchema::empty()));
    }
    for join in select.from.iter_mut().flat_map(|item| &mut item.joins) {
        if let Some(JoinConstraint::On(_)) = join_constraint(join) {
            let always = Expr::Value(Value::Boolean(true).with_empty_span());
            // Semi and anti joins name both sides in ON.
            join.join_operator = JoinOperator::Inner(JoinConstraint::On(always));
        }
    }
    let with = (!scope.ctes.is_empty()).then(|| With {
        with_token: sqlparser::ast::helpers::attached_token::AttachedToken::empty(),
        recursive: false,
        cte_tables: scope.ctes.clone(),
    });
    let mut query = Query {
        with,
        body: Box::new(SetExpr::Select(Box::new(select))),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    };
    let _ = VisitMut::visit(&mut query, &mut Unversioned);
    let _ = VisitMut::visit(&mut query, &mut Plain { rounding });
    let plan = state.statement_to_plan(PlanStatement::Statement(Box::new(Statement::Query(Box::new(query))))).await.ok()?;
    // Below the projection names keep the table that they are of.
    plan.inputs().first().map(|input| Arc::clone(input.schema()))
}

struct Unversioned;

impl VisitorMut for Unversioned {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { version, .. } = factor {
            *version = None;
        }
        ControlFlow::Continue(())
    }
}

struct Subqueries {
    found: Vec<Query>,
    depth: usize,
}

impl Visitor for Subqueries {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.depth == 0 {
            self.found.push(query.clone());
        }
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

struct Parts<'a> {
    all: &'a mut Vec<Expr>,
    queries: usize,
}

impl Visitor for Parts<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.queries == 0 {
            self.all.push(expr.clone());
        }
        ControlFlow::Continue(())
    }
}

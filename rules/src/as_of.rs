//! Rewrites on the syntax tree: as-of joins become predicates, negation becomes checked, and syntax that the planner
//! would silently ignore is refused.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, Expr, Ident, Join, JoinConstraint, JoinOperator, LimitClause, ObjectName, Query, Select, SelectItem, SetExpr, Spanned,
    TableFactor, TableVersion, TableWithJoins, UnaryOperator, Value, VisitMut, VisitorMut,
};

use crate::diagnostics::{Diagnostic, Diagnostics, Place};
use crate::reference::ReferenceData;

/// A query that finds usage rows that match several reference rows.
#[derive(Debug, Clone)]
pub(crate) struct FanOutCheck {
    /// Returns at most one row, (`source`, `id`) of such a usage row.
    pub(crate) query: Box<Query>,
    /// The reference table.
    pub(crate) table: String,
}

/// What the rewrite found.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    pub(crate) fan_out: Vec<FanOutCheck>,
    pub(crate) tables: Vec<String>,
}

pub(crate) fn rewrite(query: &mut Query, reference: &ReferenceData, file: &str, text: &str, diagnostics: &mut Diagnostics) -> Rewritten {
    let mut rewriter = Rewriter { reference, file, text, diagnostics, found: Rewritten::default() };
    let _ = VisitMut::visit(query, &mut rewriter);
    rewriter.found
}

struct Rewriter<'a> {
    reference: &'a ReferenceData,
    file: &'a str,
    text: &'a str,
    diagnostics: &'a mut Diagnostics,
    found: Rewritten,
}

impl Rewriter<'_> {
    fn error(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic::error(code, self.file, self.text, place, message));
    }

    fn from_item(&mut self, item: &mut TableWithJoins, selection: &mut Option<Expr>) {
        if let Some(predicate) = self.factor(&mut item.relation, None) {
            and(selection, predicate);
        }
        for join in &mut item.joins {
            let predicate = {
                let constraint = constraint_of(join);
                self.factor(&mut join.relation, constraint.as_ref())
            };
            let Some(predicate) = predicate else { continue };
            match &mut join.join_operator {
                JoinOperator::Join(constraint)
                | JoinOperator::Inner(constraint)
                | JoinOperator::Left(constraint)
                | JoinOperator::LeftOuter(constraint)
                | JoinOperator::Semi(constraint)
                | JoinOperator::LeftSemi(constraint)
                | JoinOperator::Anti(constraint)
                | JoinOperator::LeftAnti(constraint) => match constraint {
                    JoinConstraint::On(on) => *on = conjunction(on.clone(), predicate),
                    JoinConstraint::None => *constraint = JoinConstraint::On(predicate),
                    _ => self.error("as-of", None, "FOR SYSTEM_TIME AS OF needs a join with ON"),
                },
                JoinOperator::CrossJoin(_) => join.join_operator = JoinOperator::Inner(JoinConstraint::On(predicate)),
                _ => self.error("as-of", None, "FOR SYSTEM_TIME AS OF is for inner, left, semi and anti joins"),
            }
        }
    }

    /// Takes the version off a table and returns the predicate that it stands for.
    fn factor(&mut self, factor: &mut TableFactor, on: Option<&Expr>) -> Option<Expr> {
        let place = Place::of(factor.span());
        let TableFactor::Table { name, alias, version, .. } = factor else { return None };
        let table = single_name(name)?;
        let alias = alias.as_ref().map_or_else(|| Ident::new(table.clone()), |alias| alias.name.clone());
        let has_validity = self.reference.table(&table).is_some_and(|table| table.has_validity());
        match version.take() {
            None => {
                let named = |expr: &Expr| mentions(expr, &alias, "valid_from");
                if has_validity && !on.is_some_and(named) && !text_mentions(self.text, &alias) {
                    let message = format!("`{table}` has a validity, but the join says no time");
                    let help = format!(
                        "write `{table} FOR SYSTEM_TIME AS OF u.time AS {alias}`, or a predicate such as {alias}.valid_from < w.window_end AND ({alias}.valid_to IS NULL OR {alias}.valid_to > w.window_start)"
                    );
                    self.diagnostics.push(Diagnostic::error("as-of-missing", self.file, self.text, place, message).help(help));
                }
                None
            }
            Some(TableVersion::ForSystemTimeAsOf(instant)) if has_validity => Some(valid_at(&alias, instant)),
            Some(TableVersion::ForSystemTimeAsOf(_)) => {
                self.error("as-of", place, format!("`{table}` has no valid_from and valid_to, so it is the same at every time"));
                None
            }
            Some(_) => {
                self.error("as-of", place, "only FOR SYSTEM_TIME AS OF is read");
                None
            }
        }
    }

    /// Refuses what the planner would drop without a word.
    fn refuse_ignored(&mut self, factor: &TableFactor) {
        let place = Place::of(factor.span());
        match factor {
            TableFactor::Table { name, args, with_hints, sample, partitions, index_hints, json_path, with_ordinality, .. } => {
                if args.is_some() {
                    self.error("table-function", place, "table functions are not allowed in rules");
                }
                if !with_hints.is_empty()
                    || sample.is_some()
                    || !partitions.is_empty()
                    || !index_hints.is_empty()
                    || json_path.is_some()
                    || *with_ordinality
                {
                    self.error("unsupported", place, "table hints, samples and partitions are not allowed in rules");
                }
                if let Some(name) = single_name(name) {
                    self.found.tables.push(name);
                } else {
                    self.error("table-name", place, "a table is named by one word");
                }
            }
            TableFactor::Derived { .. } | TableFactor::NestedJoin { .. } => {}
            _ => self.error("unsupported", place, "this kind of FROM item is not allowed in rules"),
        }
    }

    /// The checks of joins between usage and reference tables whose keys do not make them unique.
    fn fan_out_checks(&mut self, select: &Select) {
        for item in &select.from {
            let Some(usage) = usage_alias(&item.relation) else { continue };
            for join in &item.joins {
                let TableFactor::Table { name, alias, .. } = &join.relation else { continue };
                let Some(table) = single_name(name) else { continue };
                let Some(reference) = self.reference.table(&table) else { continue };
                let alias = alias.as_ref().map_or_else(|| Ident::new(table.clone()), |alias| alias.name.clone());
                let unique = constraint_of(join)
                    .is_some_and(|on| !reference.key().is_empty() && reference.key().iter().all(|column| equates(&on, &alias, column)));
                if unique {
                    continue;
                }
                if matches!(
                    join.join_operator,
                    JoinOperator::Semi(_) | JoinOperator::LeftSemi(_) | JoinOperator::Anti(_) | JoinOperator::LeftAnti(_)
                ) {
                    continue;
                }
                self.found.fan_out.push(FanOutCheck { query: Box::new(several_matches(select, &usage)), table });
            }
        }
    }
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        if select.into.is_some()
            || !select.lateral_views.is_empty()
            || select.prewhere.is_some()
            || !select.connect_by.is_empty()
            || select.top.is_some()
        {
            self.error("unsupported", Place::of(select.span()), "this clause is not allowed in rules");
        }
        let mut selection = select.selection.take();
        let mut from = std::mem::take(&mut select.from);
        for item in &mut from {
            self.refuse_ignored(&item.relation);
            for join in &item.joins {
                self.refuse_ignored(&join.relation);
            }
            self.from_item(item, &mut selection);
        }
        select.from = from;
        select.selection = selection;
        self.fan_out_checks(select);
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        if !query.locks.is_empty() || query.settings.is_some() || query.format_clause.is_some() || query.for_clause.is_some() {
            self.error("unsupported", Place::of(query.span()), "FOR UPDATE, SETTINGS and FORMAT are not allowed in rules");
        }
        if matches!(*query.body, SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_)) {
            self.error("unsupported", Place::of(query.span()), "a rule only reads: write SELECT");
        }
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            self.error("unsupported", Place::of(query.span()), "recursive queries are not allowed in rules");
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        // The planner's negation wraps at the smallest number; a difference is checked.
        if let Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } = expr
            && !matches!(**inner, Expr::Value(_))
        {
            let zero = Expr::Value(Value::Number("0".to_owned(), false).with_empty_span());
            *expr = Expr::Nested(Box::new(binary(zero, BinaryOperator::Minus, (**inner).clone())));
        }
        ControlFlow::Continue(())
    }
}

fn single_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(|ident| if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }),
        _ => None,
    }
}

fn usage_alias(factor: &TableFactor) -> Option<Ident> {
    match factor {
        TableFactor::Table { name, alias, .. } if single_name(name).as_deref() == Some("usage") => {
            Some(alias.as_ref().map_or_else(|| Ident::new("usage"), |alias| alias.name.clone()))
        }
        _ => None,
    }
}

fn constraint_of(join: &Join) -> Option<Expr> {
    match &join.join_operator {
        JoinOperator::Join(JoinConstraint::On(on))
        | JoinOperator::Inner(JoinConstraint::On(on))
        | JoinOperator::Left(JoinConstraint::On(on))
        | JoinOperator::LeftOuter(JoinConstraint::On(on))
        | JoinOperator::Semi(JoinConstraint::On(on))
        | JoinOperator::LeftSemi(JoinConstraint::On(on))
        | JoinOperator::Anti(JoinConstraint::On(on))
        | JoinOperator::LeftAnti(JoinConstraint::On(on)) => Some(on.clone()),
        _ => None,
    }
}

/// `valid_from <= instant AND (valid_to IS NULL OR instant < valid_to)`; an empty `valid_from` is open, too.
fn valid_at(alias: &Ident, instant: Expr) -> Expr {
    let column = |name: &str| Expr::CompoundIdentifier(vec![alias.clone(), Ident::new(name)]);
    let from =
        conjunction_or(Expr::IsNull(Box::new(column("valid_from"))), binary(column("valid_from"), BinaryOperator::LtEq, instant.clone()));
    let to = conjunction_or(Expr::IsNull(Box::new(column("valid_to"))), binary(instant, BinaryOperator::Lt, column("valid_to")));
    conjunction(from, to)
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

fn conjunction(left: Expr, right: Expr) -> Expr {
    binary(Expr::Nested(Box::new(left)), BinaryOperator::And, Expr::Nested(Box::new(right)))
}

fn conjunction_or(left: Expr, right: Expr) -> Expr {
    Expr::Nested(Box::new(binary(left, BinaryOperator::Or, right)))
}

fn and(selection: &mut Option<Expr>, predicate: Expr) {
    *selection = Some(match selection.take() {
        Some(given) => conjunction(given, predicate),
        None => predicate,
    });
}

/// Whether the condition compares `alias.column` with anything.
fn mentions(expr: &Expr, alias: &Ident, column: &str) -> bool {
    let mut found = false;
    let _: ControlFlow<()> = sqlparser::ast::visit_expressions(expr, |expr| {
        found |= is_column(expr, alias, column);
        ControlFlow::Continue(())
    });
    found
}

fn is_column(expr: &Expr, alias: &Ident, column: &str) -> bool {
    match expr {
        Expr::CompoundIdentifier(parts) => {
            matches!(parts.as_slice(), [table, name] if table.value.eq_ignore_ascii_case(&alias.value) && name.value.eq_ignore_ascii_case(column))
        }
        Expr::Identifier(name) => name.value.eq_ignore_ascii_case(column),
        _ => false,
    }
}

/// Whether the WHERE clause, which this table's join does not see, names its validity.
fn text_mentions(text: &str, alias: &Ident) -> bool {
    text.to_lowercase().contains(&format!("{}.valid_from", alias.value.to_lowercase()))
}

/// Whether one of the conditions joined by AND is `alias.column = something else`.
fn equates(expr: &Expr, alias: &Ident, column: &str) -> bool {
    match expr {
        Expr::Nested(inner) => equates(inner, alias, column),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => equates(left, alias, column) || equates(right, alias, column),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let of_other = |expr: &Expr| !mentions(expr, alias, column);
            (is_column(left, alias, column) && of_other(right)) || (is_column(right, alias, column) && of_other(left))
        }
        _ => false,
    }
}

/// `SELECT u.source, u.id FROM … WHERE … GROUP BY u.source, u.id HAVING count(*) > 1 LIMIT 1`.
fn several_matches(select: &Select, usage: &Ident) -> Query {
    let column = |name: &str| Expr::CompoundIdentifier(vec![usage.clone(), Ident::new(name)]);
    let mut check = select.clone();
    check.distinct = None;
    check.projection = vec![SelectItem::UnnamedExpr(column("source")), SelectItem::UnnamedExpr(column("id"))];
    check.group_by = sqlparser::ast::GroupByExpr::Expressions(vec![column("source"), column("id")], Vec::new());
    check.having = count_above_one();
    check.qualify = None;
    check.named_window = Vec::new();
    Query {
        with: None,
        body: Box::new(SetExpr::Select(Box::new(check))),
        order_by: None,
        limit_clause: Some(LimitClause::LimitOffset {
            limit: Some(Expr::Value(Value::Number("1".to_owned(), false).with_empty_span())),
            offset: None,
            limit_by: Vec::new(),
        }),
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    }
}

fn count_above_one() -> Option<Expr> {
    sqlparser::parser::Parser::new(&crate::dialect::RuleDialect)
        .try_with_sql("count(*) > 1")
        .and_then(|mut parser| parser.parse_expr())
        .ok()
}

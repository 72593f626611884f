//! Rewrites on the syntax tree: as-of joins become predicates, negation becomes checked, and syntax that the planner
//! would silently ignore is refused.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use ratemill_schemas::Rounding;
use sqlparser::ast::{
    BinaryOperator, CeilFloorKind, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident, Join, JoinConstraint, JoinOperator, LimitClause, ObjectName, Query, Select, SelectItem, SetExpr, Spanned,
    TableFactor, TableVersion, TableWithJoins, UnaryOperator, Value, VisitMut, VisitorMut, With,
};

use crate::diagnostics::{Diagnostic, Diagnostics, Place};
use crate::reference::ReferenceData;
use crate::rule::RuleOptions;

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
    /// Rules whose earlier charges are read, and where it says so.
    pub(crate) earlier: Vec<(String, Option<Place>)>,
}

pub(crate) fn rewrite(
    query: &mut Query,
    reference: &ReferenceData,
    rules: &BTreeSet<String>,
    options: &RuleOptions,
    file: &str,
    text: &str,
    diagnostics: &mut Diagnostics,
) -> Rewritten {
    let with = query.with.clone();
    let mut rewriter = Rewriter {
        reference,
        rules,
        rounding: options.rounding,
        file,
        text,
        diagnostics,
        found: Rewritten::default(),
        with,
        subqueries: 0,
        fan_out_allowed: options.fan_out_allowed,
    };
    let _ = VisitMut::visit(query, &mut rewriter);
    rewriter.found
}

struct Rewriter<'a> {
    reference: &'a ReferenceData,
    /// Names of rules, which can be read like tables.
    rules: &'a BTreeSet<String>,
    rounding: Option<Rounding>,
    file: &'a str,
    text: &'a str,
    diagnostics: &'a mut Diagnostics,
    found: Rewritten,
    /// The CTEs of the whole query, which checks need, too.
    with: Option<With>,
    /// How many EXISTS, IN or scalar subqueries are around.
    subqueries: usize,
    fan_out_allowed: bool,
}

/// A join to a reference table by AS OF on its whole key meets at most one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Validity {
    None,
    AsOf,
    Predicate,
}

impl Rewriter<'_> {
    fn error(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic::error(code, self.file, self.text, place, message));
    }

    /// Takes the versions off one FROM item; returns how each joined table is restricted in time.
    fn restrict_item(&mut self, item: &mut TableWithJoins, selection: &mut Option<Expr>) -> Vec<Validity> {
        let inner_only = item
            .joins
            .iter()
            .all(|join| matches!(join.join_operator, JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_)));
        let place = Place::of(item.relation.span());
        let (predicate, _) = self.factor(&mut item.relation, selection.as_ref());
        if let Some(predicate) = predicate {
            if inner_only {
                and(selection, predicate);
            } else {
                self.error("as-of", place, "FOR SYSTEM_TIME AS OF on the first table of an outer join would drop rows; begin with the other table, or write the times into ON");
            }
        }
        let mut validities = Vec::new();
        for join in &mut item.joins {
            let on = constraint_of(join);
            let conditions = match (on, selection.as_ref()) {
                (Some(on), Some(selection)) => Some(conjunction(on, selection.clone())),
                (on, selection) => on.or_else(|| selection.cloned()),
            };
            let (predicate, validity) = self.factor(&mut join.relation, conditions.as_ref());
            validities.push(validity);
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
        validities
    }

    /// Takes the version off a table and returns the predicate that it stands for; `conditions` are those that restrict
    /// the table already.
    fn factor(&mut self, factor: &mut TableFactor, conditions: Option<&Expr>) -> (Option<Expr>, Validity) {
        let place = Place::of(factor.span());
        let TableFactor::Table { name, alias, version, .. } = factor else { return (None, Validity::None) };
        let Some(table) = single_name(name) else { return (None, Validity::None) };
        let alias = alias.as_ref().map_or_else(|| Ident::new(table.clone()), |alias| alias.name.clone());
        let has_validity = self.reference.table(&table).is_some_and(|table| table.has_validity());
        match version.take() {
            None if !has_validity => (None, Validity::None),
            None => {
                let named = |column: &str| conditions.is_some_and(|expr| mentions(expr, &alias, column));
                if !named("valid_from") || !named("valid_to") {
                    let message = format!("`{table}` has a validity, but the join says no time");
                    let help = format!(
                        "write `{table} FOR SYSTEM_TIME AS OF u.time AS {alias}`, or a predicate such as {alias}.valid_from < w.window_end AND ({alias}.valid_to IS NULL OR {alias}.valid_to > w.window_start)"
                    );
                    self.diagnostics.push(Diagnostic::error("as-of-missing", self.file, self.text, place, message).help(help));
                }
                (None, Validity::Predicate)
            }
            Some(TableVersion::ForSystemTimeAsOf(instant)) if has_validity => {
                if mentions_table(&instant, &alias) {
                    self.error(
                        "as-of",
                        place,
                        format!("the instant of `{table}` is a column of `{table}` itself; name a time of another table"),
                    );
                }
                (Some(valid_at(&alias, instant)), Validity::AsOf)
            }
            Some(TableVersion::ForSystemTimeAsOf(_)) => {
                self.error("as-of", place, format!("`{table}` has no valid_from and valid_to, so it is the same at every time"));
                (None, Validity::None)
            }
            Some(_) => {
                self.error("as-of", place, "only FOR SYSTEM_TIME AS OF is read");
                (None, Validity::None)
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
                if single_name(name).is_none() && earlier_name(name).is_none() {
                    self.error("table-name", place, "a table is named by one word; charges of earlier windows are earlier.RULE");
                }
            }
            TableFactor::Derived { .. } => {}
            TableFactor::NestedJoin { .. } => self.error("unsupported", place, "write the joins without parentheses around them"),
            _ => self.error("unsupported", place, "this kind of FROM item is not allowed in rules"),
        }
    }

    /// Sees to it that no usage row is charged several times: joins whose keys make them unique need nothing, others
    /// are checked at run time, and what cannot be checked is refused.
    fn fan_out_checks(&mut self, select: &Select, validities: &[Vec<Validity>]) {
        let relations: Vec<&TableFactor> = select
            .from
            .iter()
            .flat_map(|item| std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation)))
            .collect();
        let is_single_row = |factor: &TableFactor| matches!(factor, TableFactor::Table { name, .. } if single_name(name).as_deref() == Some("billing_window"));
        let others = relations.iter().filter(|factor| usage_alias(factor).is_none() && !is_single_row(factor)).count();
        let usages: Vec<Ident> = relations.iter().filter_map(|factor| usage_alias(factor)).collect();
        let opaque = relations.iter().any(|factor| match factor {
            TableFactor::Table { name, .. } => {
                single_name(name).is_some_and(|name| {
                    !["usage", "billing_window", "opening"].contains(&name.as_str())
                        && self.reference.table(&name).is_none()
                        && !self.rules.contains(&name)
                })
            }
            _ => true,
        });
        if self.fan_out_allowed || (usages.is_empty() && !opaque) || usages.len() + others < 2 {
            return;
        }
        let [usage] = usages.as_slice() else {
            let what = if usages.is_empty() { "a subquery or CTE is joined" } else { "usage is joined with itself" };
            let message = format!("{what}, so that it cannot be checked whether usage is charged several times");
            let help = "join usage with reference tables in one SELECT; or, if it is right as it is, say so with fan_out = 'allowed'";
            self.diagnostics.push(Diagnostic::error("fan-out", self.file, self.text, Place::of(select.span()), message).help(help));
            return;
        };
        if opaque || self.subqueries > 0 {
            let message = "usage is joined with a subquery or inside one, so that it cannot be checked whether it is charged several times";
            let help = "join usage with reference tables in the outer SELECT; or, if it is right as it is, say so with fan_out = 'allowed'";
            self.diagnostics.push(Diagnostic::error("fan-out", self.file, self.text, Place::of(select.span()), message).help(help));
            return;
        }
        let unique = select.from.iter().zip(validities).all(|(item, validities)| {
            (usage_alias(&item.relation).is_some() || is_single_row(&item.relation))
                && item
                    .joins
                    .iter()
                    .zip(validities)
                    .all(|(join, validity)| is_single_row(&join.relation) || self.is_unique(join, *validity))
        });
        if !unique {
            let table = relations.iter().find_map(|factor| match factor {
                TableFactor::Table { name, .. } => single_name(name).filter(|name| name != "usage" && name != "billing_window"),
                _ => None,
            });
            let query = Box::new(several_matches(select, usage, self.with.clone()));
            self.found.fan_out.push(FanOutCheck { query, table: table.unwrap_or_default() });
        }
    }

    /// `unique(x)` is `count(DISTINCT x)`; rounding takes the rule's mode where a call names none.
    fn plain_functions(&self, function: &mut Function) {
        let Some(name) = single_name(&function.name) else { return };
        let FunctionArguments::List(list) = &mut function.args else { return };
        let text = |text: &str| {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(Value::SingleQuotedString(text.to_owned()).with_empty_span())))
        };
        let number = |text: &str| {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(Value::Number(text.to_owned(), false).with_empty_span())))
        };
        match (name.as_str(), list.args.len(), self.rounding) {
            ("unique", 1, _) if list.duplicate_treatment.is_none() => {
                function.name = ObjectName::from(vec![Ident::with_span(function.name.span(), "count")]);
                list.duplicate_treatment = Some(DuplicateTreatment::Distinct);
            }
            ("ceil" | "floor", 1 | 2, _) => {
                if list.args.len() == 1 {
                    list.args.push(number("0"));
                }
                list.args.push(text(if name == "ceil" { "ceiling" } else { "floor" }));
                function.name = ObjectName::from(vec![Ident::with_span(function.name.span(), "round")]);
            }
            ("round_money", 2, Some(mode)) | ("round", 2, Some(mode)) => list.args.push(text(mode.name())),
            ("round", 1, Some(mode)) => list.args.extend([number("0"), text(mode.name())]),
            _ => {}
        }
    }

    /// Whether a join meets at most one row of its reference table: its whole key is given, and the time where it has one.
    fn is_unique(&self, join: &Join, validity: Validity) -> bool {
        let TableFactor::Table { name, alias, .. } = &join.relation else { return false };
        let Some(table) = single_name(name) else { return false };
        let Some(reference) = self.reference.table(&table) else { return false };
        let alias = alias.as_ref().map_or_else(|| Ident::new(table.clone()), |alias| alias.name.clone());
        validity != Validity::Predicate
            && !reference.key().is_empty()
            && constraint_of(join).is_some_and(|on| reference.key().iter().all(|column| equates(&on, &alias, column)))
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
        let mut validities = Vec::new();
        for item in &mut from {
            self.refuse_ignored(&item.relation);
            for join in &item.joins {
                self.refuse_ignored(&join.relation);
            }
            validities.push(self.restrict_item(item, &mut selection));
        }
        select.from = from;
        select.selection = selection;
        self.fan_out_checks(select, &validities);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, version, .. } = factor {
            self.found.tables.extend(single_name(name));
            self.found.earlier.extend(earlier_name(name).map(|rule| (rule, Place::of(name.span()))));
            if version.is_some() {
                let place = Place::of(name.span());
                self.error("as-of", place, "FOR SYSTEM_TIME AS OF is not read here; join the table in FROM, without parentheses");
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if matches!(expr, Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::Subquery(_)) {
            self.subqueries += 1;
        }
        let place = Place::of(expr.span());
        match expr {
            Expr::BinaryOp {
                op:
                    BinaryOperator::BitwiseXor
                    | BinaryOperator::BitwiseAnd
                    | BinaryOperator::BitwiseOr
                    | BinaryOperator::PGBitwiseXor
                    | BinaryOperator::PGExp,
                ..
            } => self.error("operator", place, "the operators ^ & | # are not for money (^ is no power); write the product out"),
            Expr::Value(value) => {
                if let Value::Number(text, _) = &value.value
                    && let Err(error) = ratemill_schemas::Decimal::parse(text.as_bytes())
                {
                    self.error("number", place, format!("`{text}` {error}"));
                }
            }
            _ => {}
        }
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
        if matches!(expr, Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::Subquery(_)) {
            self.subqueries -= 1;
        }
        if let Expr::Function(function) = expr {
            self.plain_functions(function);
        }
        // The parser has a node of its own for these; they are exact roundings.
        let rounding = match expr {
            Expr::Ceil { expr, field } => Some((expr, field, "ceiling")),
            Expr::Floor { expr, field } => Some((expr, field, "floor")),
            _ => None,
        };
        if let Some((number, field, mode)) = rounding {
            let places = match field {
                CeilFloorKind::Scale(value) => Expr::Value(value.clone()),
                CeilFloorKind::DateTimeField(_) => Expr::Value(Value::Number("0".to_owned(), false).with_empty_span()),
            };
            let mode = Expr::Value(Value::SingleQuotedString(mode.to_owned()).with_empty_span());
            *expr = call("round", vec![(**number).clone(), places, mode]);
        }
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

fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn single_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(|ident| if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }),
        _ => None,
    }
}

/// `NAME` of `earlier.NAME`.
fn earlier_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [schema, rule] if schema.as_ident().is_some_and(|ident| ident.value.eq_ignore_ascii_case("earlier")) => {
            rule.as_ident().map(|ident| ident.value.to_lowercase())
        }
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

/// Whether the expression names any column of `alias`.
fn mentions_table(expr: &Expr, alias: &Ident) -> bool {
    let mut found = false;
    let _: ControlFlow<()> = sqlparser::ast::visit_expressions(expr, |expr| {
        found |= matches!(expr, Expr::CompoundIdentifier(parts) if parts.first().is_some_and(|table| table.value.eq_ignore_ascii_case(&alias.value)));
        ControlFlow::Continue(())
    });
    found
}

/// Whether one of the conditions joined by AND is `alias.column = something else`.
fn equates(expr: &Expr, alias: &Ident, column: &str) -> bool {
    match expr {
        Expr::Nested(inner) => equates(inner, alias, column),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => equates(left, alias, column) || equates(right, alias, column),
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let of_other = |expr: &Expr| !mentions_table(expr, alias);
            (is_column(left, alias, column) && of_other(right)) || (is_column(right, alias, column) && of_other(left))
        }
        _ => false,
    }
}

/// `SELECT u.source, u.id FROM … WHERE … GROUP BY u.source, u.id HAVING count(*) > 1 LIMIT 1`.
fn several_matches(select: &Select, usage: &Ident, with: Option<With>) -> Query {
    let column = |name: &str| Expr::CompoundIdentifier(vec![usage.clone(), Ident::new(name)]);
    let mut check = select.clone();
    // An outer join keeps rows without usage.
    and(&mut check.selection, Expr::IsNotNull(Box::new(column("id"))));
    check.distinct = None;
    check.projection = vec![SelectItem::UnnamedExpr(column("source")), SelectItem::UnnamedExpr(column("id"))];
    check.group_by = sqlparser::ast::GroupByExpr::Expressions(vec![column("source"), column("id")], Vec::new());
    check.having = count_above_one();
    check.qualify = None;
    check.named_window = Vec::new();
    Query {
        with,
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

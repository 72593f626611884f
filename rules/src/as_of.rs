//! Rewrites on the syntax tree: as-of joins become predicates, negation becomes checked, and syntax that the planner
//! would silently ignore is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use arrow::datatypes::SchemaRef;
use sqlparser::ast::{
    BinaryOperator, Expr, Ident, Join, JoinConstraint, JoinOperator, LimitClause, Query, Select, SelectItem, SetExpr, Spanned, TableFactor,
    TableVersion, TableWithJoins, Value, VisitMut, VisitorMut, With,
};

use crate::diagnostics::{Diagnostics, Place};
use crate::plain::Plain;
use crate::reference::ReferenceData;
use crate::rule::RuleOptions;
use crate::source::Source;
use crate::tree::{
    constraint_of, ctes_in, earlier_name, equates, is_column, mentions_table, relations, single_name, table_and_alias, tables_in,
    usage_aliases,
};

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
    /// Of these, how many are joined as of the time of an event of usage.
    pub(crate) as_of_usage: Vec<String>,
    /// The query may see when rows are valid, by a name or a `*`.
    pub(crate) sees_validity: bool,
    /// Rules whose earlier charges are read, and where it says so.
    pub(crate) earlier: Vec<(String, Option<Place>)>,
}

pub(crate) fn rewrite(
    query: &mut Query,
    reference: &ReferenceData,
    rules: &BTreeSet<String>,
    options: &RuleOptions,
    source: &Source,
    diagnostics: &mut Diagnostics,
) -> Rewritten {
    let with = query.with.clone();
    let errors = diagnostics.errors();
    let ctes = ctes_in(query).into_iter().map(|(name, query)| (name, tables_in(&query))).collect();
    let mut rewriter = Rewriter {
        reference,
        rules,
        source,
        diagnostics,
        found: Rewritten::default(),
        with,
        ctes,
        plain: Plain { rounding: options.rounding },
        subqueries: 0,
        errors,
        fan_out_allowed: options.fan_out_allowed,
        usages: Vec::new(),
    };
    let _ = VisitMut::visit(query, &mut rewriter);
    rewriter.found
}

struct Rewriter<'a> {
    reference: &'a ReferenceData,
    /// Names of rules, which can be read like tables.
    rules: &'a BTreeSet<String>,
    source: &'a Source,
    diagnostics: &'a mut Diagnostics,
    found: Rewritten,
    /// The CTEs of the whole query, which checks need, too.
    with: Option<With>,
    /// The tables that each CTE names.
    ctes: BTreeMap<String, BTreeSet<String>>,
    plain: Plain,
    /// How many EXISTS, IN or scalar subqueries are around.
    subqueries: usize,
    /// How many errors there were before.
    errors: usize,
    fan_out_allowed: bool,
    /// What usage is called in the SELECT that is rewritten.
    usages: Vec<Ident>,
}

/// A join to a reference table by AS OF on its whole key meets at most one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Validity {
    None,
    AsOf,
    Predicate,
}

impl Rewriter<'_> {
    fn error(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>, help: &str) {
        self.diagnostics.push(self.source.error(code, place, message).help(help));
    }

    fn warn(&mut self, code: &'static str, place: Option<Place>, message: impl Into<String>, help: &str) {
        self.diagnostics.push(self.source.error(code, place, message).help(help).warning());
    }

    /// The name of a table, where it stands.
    fn place_of(&self, factor: &TableFactor) -> Option<Place> {
        match factor {
            TableFactor::Table { name, .. } => self.source.of_span(name.span()),
            TableFactor::Derived { .. } => {
                let inner = self.source.of_span(factor.span())?;
                let (mut token, mut open) = self.source.token_before(inner.line, inner.column)?;
                if matches!(token, sqlparser::tokenizer::Token::Word(_)) {
                    // Of VALUES the parser knows the rows.
                    (token, open) = self.source.token_before(open.line, open.column)?;
                }
                Some(if *token == sqlparser::tokenizer::Token::LParen { self.source.with_parentheses(open) } else { inner })
            }
            other => self.source.of_span(other.span()),
        }
    }

    /// Takes the versions off one FROM item; returns how each joined table is restricted in time.
    fn restrict_item(&mut self, item: &mut TableWithJoins, selection: &mut Option<Expr>) -> Vec<Validity> {
        let inner_only = item
            .joins
            .iter()
            .all(|join| matches!(join.join_operator, JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_)));
        let place = self.place_of(&item.relation);
        let (predicate, _) = self.factor(&mut item.relation, selection.as_ref());
        if let Some(predicate) = predicate {
            if inner_only {
                and(selection, predicate);
            } else {
                let help = "begin with the other table, or write the times into ON";
                self.error("as-of-outer", place, "FOR SYSTEM_TIME AS OF on the first table of an outer join would drop rows", help);
            }
        }
        let mut validities = Vec::new();
        for join in &mut item.joins {
            let on = constraint_of(join).cloned();
            let place = self.place_of(&join.relation);
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
                    _ => {
                        let using = self.source.words(place, &["USING"]).map(|using| self.source.with_parentheses(using));
                        self.error(
                            "as-of-using",
                            using.or(place),
                            "FOR SYSTEM_TIME AS OF needs a join with ON",
                            "write ON c.subject = u.subject",
                        );
                    }
                },
                JoinOperator::CrossJoin(_) => join.join_operator = JoinOperator::Inner(JoinConstraint::On(predicate)),
                _ => {
                    let help = "write JOIN or LEFT JOIN, or the times into ON";
                    self.error("as-of-outer", place, "FOR SYSTEM_TIME AS OF is for inner, left, semi and anti joins", help);
                }
            }
        }
        validities
    }

    /// Takes the version off a table and returns the predicate that it stands for; `conditions` are those that restrict
    /// the table already.
    fn factor(&mut self, factor: &mut TableFactor, conditions: Option<&Expr>) -> (Option<Expr>, Validity) {
        let place = self.place_of(factor);
        let alias_place = self.source.of_span(factor.span());
        let TableFactor::Table { name, alias, version, .. } = factor else { return (None, Validity::None) };
        let Some(table) = single_name(name) else { return (None, Validity::None) };
        let alias = alias.as_ref().map_or_else(|| Ident::new(table.clone()), |alias| alias.name.clone());
        let schema = self.reference.table(&table).filter(|table| table.has_validity()).map(|table| table.schema());
        match (version.take(), schema) {
            (None, None) => (None, Validity::None),
            (None, Some(schema)) => {
                self.bounded(&table, &alias, &schema, conditions, alias_place);
                (None, Validity::Predicate)
            }
            (Some(TableVersion::ForSystemTimeAsOf(instant)), Some(_)) => {
                if mentions_table(&instant, &alias) {
                    let message = format!("the instant of `{table}` is a column of `{table}` itself");
                    self.error("as-of-own-column", self.source.of(&instant), message, "name a time of another table, such as u.time");
                }
                if self.usages.iter().any(|usage| is_column(&instant, usage, "time")) {
                    self.found.as_of_usage.push(table);
                }
                (Some(valid_at(&alias, instant)), Validity::AsOf)
            }
            (Some(TableVersion::ForSystemTimeAsOf(_)), None) => {
                let message = format!("`{table}` has no valid_from and valid_to, so it is the same at every time");
                self.error("as-of-no-validity", place, message, "take FOR SYSTEM_TIME AS OF out");
                (None, Validity::None)
            }
            (Some(_), _) => {
                self.error("as-of-no-validity", place, "only FOR SYSTEM_TIME AS OF is read", "write FOR SYSTEM_TIME AS OF u.time");
                (None, Validity::None)
            }
        }
    }

    /// A table with a validity that is joined without AS OF: conditions must bound both ends.
    fn bounded(&mut self, table: &str, alias: &Ident, schema: &SchemaRef, conditions: Option<&Expr>, place: Option<Place>) {
        let mut bounds = Bounds::default();
        if let Some(conditions) = conditions {
            bounds.find(conditions, alias);
        }
        if !bounds.from || !bounds.to {
            let help = format!(
                "write `{table} FOR SYSTEM_TIME AS OF u.time AS {alias}`, or a predicate such as {alias}.valid_from < w.window_end AND ({alias}.valid_to IS NULL OR {alias}.valid_to > w.window_start)"
            );
            return self.error("as-of-missing", place, format!("`{table}` has a validity, but the join says no time"), &help);
        }
        let may_be_open = schema.field_with_name("valid_to").is_ok_and(|field| field.is_nullable());
        if let Some(comparison) = bounds.open.as_ref().filter(|_| may_be_open && !bounds.is_null) {
            let message = format!("a row of `{table}` without valid_to never matches");
            let help = format!("write ({alias}.valid_to IS NULL OR {comparison}), or FOR SYSTEM_TIME AS OF");
            self.warn("as-of-open-end", self.source.of(comparison), message, &help);
        } else if let Some(comparison) = &bounds.closed {
            let message = "valid_to is the first instant after the row: at that instant two rows match";
            self.warn(
                "as-of-half-open",
                self.source.of(comparison),
                message,
                "leave the equality out: valid_to > u.time, or FOR SYSTEM_TIME AS OF",
            );
        }
    }

    /// Sees to it that no usage row is charged several times: joins whose keys make them unique need nothing, others
    /// are checked at run time, and what cannot be checked is refused.
    fn fan_out_checks(&mut self, select: &Select, validities: &[Vec<Validity>]) {
        let is_single_row = |factor: &TableFactor| table_and_alias(factor).is_some_and(|(table, _)| table == "billing_window");
        let others: Vec<&TableFactor> = relations(select).filter(|factor| !is_usage(factor) && !is_single_row(factor)).collect();
        let usages = usage_aliases(select);
        let reads_usage = !usages.is_empty() || others.iter().any(|factor| self.holds_usage(factor));
        if self.fan_out_allowed || !reads_usage || usages.len() + others.len() < 2 {
            if !self.fan_out_allowed && !reads_usage {
                self.charges_fan_out(select, validities);
            }
            return;
        }
        let help = "join usage with reference tables in one SELECT; or, if it is right as it is, say so with fan_out = 'allowed'";
        let opaque = others.iter().copied().find(|factor| self.is_opaque(factor));
        let [usage] = usages.as_slice() else {
            let (what, factor) = match opaque.or_else(|| others.first().copied()) {
                Some(factor) if usages.is_empty() => ("usage of a subquery is joined", Some(factor)),
                _ => ("usage is joined with itself", relations(select).filter(|factor| is_usage(factor)).nth(1)),
            };
            let message = format!("{what}, so that it cannot be checked whether it is charged several times");
            return self.error("fan-out", factor.and_then(|factor| self.place_of(factor)), message, help);
        };
        if opaque.is_some() || self.subqueries > 0 {
            let what = if opaque.is_some() { "with a subquery" } else { "inside one" };
            let message = format!("usage is joined {what}, so that it cannot be checked whether it is charged several times");
            let place = opaque.or_else(|| others.first().copied()).and_then(|factor| self.place_of(factor));
            return self.error("fan-out", place, message, help);
        }
        let mut several: Vec<String> = Vec::new();
        for (item, validities) in select.from.iter().zip(validities) {
            if !is_usage(&item.relation) && !is_single_row(&item.relation) {
                several.extend(table_and_alias(&item.relation).map(|(table, _)| table));
                self.fan_out_key(&item.relation, select, "an event may match several rows of");
            }
            for (join, validity) in item.joins.iter().zip(validities) {
                if !is_single_row(&join.relation) && !is_usage(&join.relation) && !self.is_unique(join, *validity) {
                    several.extend(table_and_alias(&join.relation).map(|(table, _)| table));
                    self.fan_out_key(&join.relation, select, "an event may match several rows of");
                }
            }
        }
        if !several.is_empty() {
            let query = Box::new(several_matches(select, usage, self.with.clone()));
            self.found.fan_out.push(FanOutCheck { query, table: several.join("` or `") });
        }
    }

    /// Warns of joins that may meet a charge of another rule several times.
    fn charges_fan_out(&mut self, select: &Select, validities: &[Vec<Validity>]) {
        let of_rule = |factor: &TableFactor| {
            table_and_alias(factor).is_some_and(|(table, _)| self.rules.contains(table.strip_prefix("earlier.").unwrap_or(&table)))
        };
        if !relations(select).any(of_rule) {
            return;
        }
        for (item, validities) in select.from.iter().zip(validities) {
            for (join, validity) in item.joins.iter().zip(validities) {
                let is_table = table_and_alias(&join.relation)
                    .is_some_and(|(table, _)| self.reference.table(&table).is_some() || self.rules.contains(&table));
                if is_table && !self.is_unique(join, *validity) {
                    self.fan_out_key(&join.relation, select, "a charge may match several rows of");
                }
            }
        }
    }

    /// Says which columns of a key a join leaves open.
    fn fan_out_key(&mut self, factor: &TableFactor, select: &Select, what: &str) {
        let Some((table, alias)) = table_and_alias(factor) else { return };
        if self.diagnostics.errors() > self.errors {
            // Keys are not looked at before the joins are right.
            return;
        }
        let place = self.source.of_span(factor.span());
        let message = format!("{what} `{table}`, and is then counted several times");
        let Some(reference) = self.reference.table(&table) else {
            if self.rules.contains(&table) {
                self.warn(
                    "fan-out-key",
                    place,
                    message,
                    "join usage with reference tables, or sum the rule's charges in a rule of its own",
                );
            }
            return;
        };
        let conditions: Vec<&Expr> = select.selection.iter().chain(relations_joins(select).filter_map(constraint_of)).collect();
        let missing: Vec<&str> =
            reference.key().iter().map(String::as_str).filter(|column| !conditions.iter().any(|on| equates(on, &alias, column))).collect();
        if reference.key().is_empty() {
            self.warn("fan-out-key", place, message, &format!("declare the key of {table} in reference/{table}.toml"));
        } else if !missing.is_empty() {
            let columns: Vec<String> = missing.iter().map(|column| format!("{alias}.{column} = …")).collect();
            let help = format!("its key is {}: add {}", reference.key().join(", "), columns.join(" AND "));
            self.warn("fan-out-key", place, message, &help);
        }
    }

    /// Whether it is a subquery or a CTE.
    fn is_opaque(&self, factor: &TableFactor) -> bool {
        match factor {
            TableFactor::Table { name, .. } => single_name(name).is_some_and(|name| self.ctes.contains_key(&name)),
            _ => true,
        }
    }

    /// Whether it is a subquery or a CTE that reads usage.
    fn holds_usage(&self, factor: &TableFactor) -> bool {
        let mut waiting = match factor {
            TableFactor::Derived { subquery, .. } => tables_in(subquery),
            TableFactor::Table { name, .. } => match single_name(name) {
                Some(name) if self.ctes.contains_key(&name) => BTreeSet::from([name]),
                _ => return false,
            },
            _ => return true,
        };
        let mut seen = BTreeSet::new();
        while let Some(table) = waiting.pop_first() {
            if table == "usage" {
                return true;
            }
            if let Some(tables) = self.ctes.get(&table).filter(|_| seen.insert(table.clone())) {
                waiting.extend(tables.iter().cloned());
            }
        }
        false
    }

    /// Whether a join meets at most one row of its reference table: its whole key is given, and the time where it has one.
    fn is_unique(&self, join: &Join, validity: Validity) -> bool {
        let Some((table, alias)) = table_and_alias(&join.relation) else { return false };
        let Some(reference) = self.reference.table(&table) else { return false };
        validity != Validity::Predicate
            && !reference.key().is_empty()
            && match using_of(join) {
                Some(columns) => reference.key().iter().all(|column| columns.contains(column)),
                None => constraint_of(join).is_some_and(|on| reference.key().iter().all(|column| equates(on, &alias, column))),
            }
    }
}

/// The columns of USING.
fn using_of(join: &Join) -> Option<Vec<String>> {
    match &join.join_operator {
        JoinOperator::Join(JoinConstraint::Using(names))
        | JoinOperator::Inner(JoinConstraint::Using(names))
        | JoinOperator::Left(JoinConstraint::Using(names))
        | JoinOperator::LeftOuter(JoinConstraint::Using(names)) => Some(names.iter().filter_map(single_name).collect()),
        _ => None,
    }
}

fn is_usage(factor: &TableFactor) -> bool {
    table_and_alias(factor).is_some_and(|(table, _)| table == "usage")
}

fn relations_joins(select: &Select) -> impl Iterator<Item = &Join> {
    select.from.iter().flat_map(|item| &item.joins)
}

/// What conditions say of a validity.
#[derive(Debug, Default)]
struct Bounds {
    from: bool,
    to: bool,
    /// A row without end is thought of.
    is_null: bool,
    /// A comparison that a row without end does not pass.
    open: Option<Expr>,
    /// A comparison that counts the end itself.
    closed: Option<Expr>,
}

impl Bounds {
    fn find(&mut self, condition: &Expr, alias: &Ident) {
        match condition {
            Expr::Nested(inner) => self.find(inner, alias),
            Expr::BinaryOp { left, op: BinaryOperator::And | BinaryOperator::Or, right } => {
                self.find(left, alias);
                self.find(right, alias);
            }
            Expr::BinaryOp { left, op, right } => {
                self.compare(condition, left, op, right, alias);
                if let Some(turned) = turned(op) {
                    self.compare(condition, right, &turned, left, alias);
                }
            }
            Expr::Between { expr, negated: false, low, high } => {
                self.compare(condition, low, &BinaryOperator::LtEq, expr, alias);
                self.compare(condition, high, &BinaryOperator::GtEq, expr, alias);
            }
            Expr::IsNull(column) if is_column(column, alias, "valid_to") => self.is_null = true,
            _ => {}
        }
    }

    /// `bound op other`, where only the bound is of the table.
    fn compare(&mut self, condition: &Expr, bound: &Expr, op: &BinaryOperator, other: &Expr, alias: &Ident) {
        let names = |column: &str| crate::tree::any(bound, |part| is_column(part, alias, column));
        let of_table = mentions_table(other, alias)
            || ["valid_from", "valid_to"].iter().any(|column| crate::tree::any(other, |part| is_column(part, alias, column)));
        if of_table {
            return;
        }
        if names("valid_from") && matches!(op, BinaryOperator::Lt | BinaryOperator::LtEq) {
            self.from = true;
        }
        if names("valid_to") && matches!(op, BinaryOperator::Gt | BinaryOperator::GtEq) {
            self.to = true;
            if is_column(bound, alias, "valid_to") {
                self.open = Some(condition.clone());
            } else {
                // coalesce(valid_to, …) thinks of it.
                self.is_null = true;
            }
            if *op == BinaryOperator::GtEq {
                self.closed = Some(condition.clone());
            }
        }
    }
}

fn turned(op: &BinaryOperator) -> Option<BinaryOperator> {
    Some(match op {
        BinaryOperator::Lt => BinaryOperator::Gt,
        BinaryOperator::LtEq => BinaryOperator::GtEq,
        BinaryOperator::Gt => BinaryOperator::Lt,
        BinaryOperator::GtEq => BinaryOperator::LtEq,
        _ => return None,
    })
}

impl VisitorMut for Rewriter<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        self.usages = usage_aliases(select);
        let is_wild = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
        self.found.sees_validity |= select.projection.iter().any(is_wild);
        let mut selection = select.selection.take();
        let mut from = std::mem::take(&mut select.from);
        let mut validities = Vec::new();
        for item in &mut from {
            validities.push(self.restrict_item(item, &mut selection));
        }
        select.from = from;
        select.selection = selection;
        self.fan_out_checks(select, &validities);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, .. } = factor {
            self.found.tables.extend(single_name(name));
            self.found.earlier.extend(earlier_name(name).map(|rule| (rule, self.source.of_span(name.span()))));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if matches!(expr, Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::Subquery(_)) {
            self.subqueries += 1;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if matches!(expr, Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::Subquery(_)) {
            self.subqueries -= 1;
        }
        self.plain.post_visit_expr(expr)
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        self.plain.post_visit_select(select)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(condition: &str, expected: (bool, bool, bool, bool)) {
        let mut parser = sqlparser::parser::Parser::new(&crate::dialect::RuleDialect).try_with_sql(condition).unwrap();
        let mut bounds = Bounds::default();
        bounds.find(&parser.parse_expr().unwrap(), &Ident::new("c"));
        assert_eq!((bounds.from, bounds.to, bounds.is_null, bounds.closed.is_some()), expected, "{condition}");
    }

    #[test]
    fn a_validity_is_bounded_by_comparisons_alone() {
        check("c.valid_from <= u.time AND (c.valid_to IS NULL OR u.time < c.valid_to)", (true, true, true, false));
        check("c.valid_from < w.window_end AND coalesce(c.valid_to, w.window_end) > w.window_start", (true, true, true, false));
        check("c.valid_from <= u.time AND c.valid_to >= u.time", (true, true, false, true));
        check("u.time BETWEEN c.valid_from AND c.valid_to", (true, true, false, true));
        check("c.valid_from IS NOT NULL AND c.valid_to IS NULL", (false, false, true, false));
        check("c.valid_from < c.valid_to", (false, false, false, false));
    }
}

//! What the syntax tree alone shows to be wrong: statements that write, rows in no certain order, values that are null
//! or not the same tomorrow.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, Distinct, Expr, Function, FunctionArg, FunctionArguments, JoinConstraint, LimitClause, NamedWindowExpr, Query, Select,
    SelectItem, SetExpr, SetOperator, Spanned, Value, Visit, Visitor, WindowType,
};

use super::Reading;
use super::functions::{self, Advice};
use crate::diagnostics::Place;
use crate::source::Source;
use crate::tree::{
    any, call_name, column_name, conjuncts, is_aggregate, is_column, is_null_literal, join_constraint, number_literal, plain, relations,
    selects, table_and_alias, usage_aliases,
};

/// Functions whose value depends on the order of the rows.
const ORDERED: [&str; 9] = ["row_number", "rank", "dense_rank", "ntile", "lag", "lead", "first_value", "last_value", "nth_value"];

pub(super) fn check(query: &Query, reading: &mut Reading<'_>) {
    if matches!(*query.body, SetExpr::Values(_)) {
        let place = reading.source.words(None, &["AS", "VALUES"]).and_then(|place| reading.source.words(Some(place), &["VALUES"]));
        reading.error(
            "not-a-select",
            place,
            "the rule returns fixed values",
            "write SELECT … AS customer_id, … AS item, … AS amount, … AS currency FROM …",
        );
        return;
    }
    let _ = query.visit(&mut Syntax { reading, windows: Vec::new(), aggregates: 0 });
    if let Some(first) = selects(&query.body).first() {
        names(first, reading);
    }
}

struct Syntax<'r, 'a> {
    reading: &'r mut Reading<'a>,
    /// Named windows without ORDER BY, of the SELECTs around.
    windows: Vec<Vec<String>>,
    /// How many aggregate calls are around.
    aggregates: usize,
}

impl Syntax<'_, '_> {
    fn source(&self) -> &Source {
        self.reading.source
    }

    /// LIMIT, OFFSET and FETCH take rows; without an order, any.
    fn limits(&mut self, query: &Query) {
        if query.order_by.is_some() {
            return;
        }
        let body = self.source().of_span(query.body.span());
        let (word, value) = match (&query.limit_clause, &query.fetch) {
            (Some(LimitClause::LimitOffset { limit: Some(limit), .. } | LimitClause::OffsetCommaLimit { limit, .. }), _) => {
                ("LIMIT", Some(limit.clone()))
            }
            (Some(LimitClause::LimitOffset { offset: Some(offset), .. }), _) => ("OFFSET", Some(offset.value.clone())),
            (_, Some(_)) => ("FETCH", None),
            _ => return,
        };
        // One row without GROUP BY needs no order.
        if let SetExpr::Select(select) = query.body.as_ref()
            && has_no_group(select)
            && select.projection.iter().all(
                |item| matches!(item, SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } if any(expr, is_aggregate)),
            )
        {
            return;
        }
        let place = match value {
            Some(value) => self.source().of(&value).and_then(|value| {
                let (_, before) = self.source().token_before(value.line, value.column)?;
                Some(Source::join(before, value))
            }),
            None => self.source().words(body, &["FETCH"]),
        };
        let message = format!("{word} without ORDER BY takes any rows");
        self.reading.error("limit-order", place, message, "add ORDER BY up to a column that is different in every row, such as u.id");
    }

    fn clauses(&mut self, select: &Select) {
        let start = self.source().of_span(select.span());
        if select.into.is_some() {
            let place = self.source().words(start, &["INTO"]);
            let place =
                place.and_then(|place| self.source().token_at(place.line, place.end_column + 1).map(|(_, name)| Source::join(place, name)));
            self.reading.error("reads-only", place, "a rule only reads", "take INTO out; what the rule returns becomes charges");
        }
        if let Some(Distinct::On(_)) = &select.distinct {
            let place = self.source().words(start, &["DISTINCT", "ON"]).map(|place| self.source().with_parentheses(place));
            let help = "row_number() OVER (PARTITION BY … ORDER BY …) AS n in a subquery, and WHERE n = 1 around it";
            self.reading.error("distinct-on", place, "DISTINCT ON takes any row", help);
        }
        let unknown = [
            (!select.lateral_views.is_empty(), "LATERAL"),
            (select.prewhere.is_some(), "PREWHERE"),
            (!select.connect_by.is_empty(), "CONNECT"),
            (select.top.is_some(), "TOP"),
            (!select.cluster_by.is_empty(), "CLUSTER"),
            (!select.distribute_by.is_empty(), "DISTRIBUTE"),
            (!select.sort_by.is_empty(), "SORT"),
        ];
        for (_, word) in unknown.into_iter().filter(|(given, _)| *given) {
            let place = self.source().words(start, &[word]);
            self.reading.error(
                "unsupported",
                place,
                format!("{word} is not allowed in rules"),
                "a rule is SELECT … FROM … WHERE … GROUP BY …",
            );
        }
        for join in select.from.iter().flat_map(|item| &item.joins) {
            if matches!(join_constraint(join), Some(JoinConstraint::Natural)) {
                let relation = self.source().of_span(join.relation.span());
                let words = self.source().words(start, &["NATURAL"]);
                let place = words.zip(relation).map(|(words, relation)| Source::join(words, relation)).or(words);
                self.reading.error("natural-join", place, "a natural join changes when a table gets a column", "write ON and the columns");
            }
        }
    }

    /// Aggregates and window functions stand where rows are grouped, not where they are chosen.
    fn misplaced(&mut self, select: &Select) {
        let mut found: Vec<(Option<Place>, &'static str, &'static str)> = Vec::new();
        let source = self.reading.source;
        if let Some(selection) = &select.selection {
            each_own(selection, &mut |expr| match expr {
                Expr::Function(call) if call.over.is_some() => {
                    found.push((
                        source.of(expr),
                        "a window function cannot stand in WHERE",
                        "compute it in a subquery, and filter around it",
                    ));
                }
                expr if is_aggregate(expr) => {
                    found.push((source.of(expr), "an aggregate cannot stand in WHERE", "a condition on a sum stands in HAVING"));
                }
                _ => {}
            });
        }
        for (place, message, help) in found {
            self.reading.error("aggregate-place", place, message, help);
        }
    }

    /// Usage holds the window alone: what asks for other times is never true.
    fn outside(&mut self, select: &Select) {
        let usages = usage_aliases(select);
        let windows: Vec<_> = relations(select).filter_map(table_and_alias).filter(|(table, _)| table == "billing_window").collect();
        let mut conditions: Vec<&Expr> = select.selection.iter().flat_map(|selection| conjuncts(selection)).collect();
        conditions.extend(select.from.iter().flat_map(|item| &item.joins).filter_map(crate::tree::constraint_of).flat_map(conjuncts));
        for condition in conditions {
            let Expr::BinaryOp { left, op, right } = condition else { continue };
            let is_time = |expr: &Expr| {
                usages.iter().any(|usage| matches!(plain(expr), Expr::CompoundIdentifier(_)) && is_column(expr, usage, "time"))
            };
            let is_bound = |expr: &Expr, bound| windows.iter().any(|(_, window)| is_column(expr, window, bound));
            let never = match op {
                BinaryOperator::Lt => {
                    (is_time(left) && is_bound(right, "window_start")) || (is_bound(left, "window_end") && is_time(right))
                }
                BinaryOperator::Gt => {
                    (is_time(right) && is_bound(left, "window_start")) || (is_bound(right, "window_end") && is_time(left))
                }
                BinaryOperator::GtEq => is_time(left) && is_bound(right, "window_end"),
                BinaryOperator::LtEq => is_bound(left, "window_end") && is_time(right),
                _ => false,
            };
            if never {
                let place = self.source().of(condition);
                let help = "earlier events: carry and opening; earlier charges: earlier.NAME with history";
                self.reading.error("outside-window", place, "`usage` holds the events of the window alone, so this is never true", help);
            }
        }
        self.contradictions(select);
    }

    /// `meter = 'a' AND meter = 'b'`.
    fn contradictions(&mut self, select: &Select) {
        let mut fixed: Vec<(String, &str, &Expr)> = Vec::new();
        for condition in select.selection.iter().flat_map(|selection| conjuncts(selection)) {
            let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = condition else { continue };
            let (Some(_), Some(text)) = (column_name(left), crate::tree::text_literal(right)) else { continue };
            let column = left.to_string().to_lowercase();
            if let Some((.., first)) = fixed.iter().find(|(known, other, _)| *known == column && *other != text) {
                let place = self.reading.source.between(first, condition);
                self.reading.error("always-false", place, format!("`{left}` cannot be both"), "write IN ('…', '…') or OR");
            }
            fixed.push((column, text, condition));
        }
    }

    fn call(&mut self, expr: &Expr, call: &Function) {
        let name_place = self.source().of_span(call.name.span());
        let Some(name) = call_name(call) else {
            let message = format!("there is no function `{}`", call.name);
            return self.reading.error("function-unknown", name_place, message, "functions are named by one word");
        };
        match functions::advice(&name) {
            Advice::Known => {}
            Advice::Volatile => {
                let help = "a charge must come out the same whenever it is rated: use window_start and window_end of billing_window";
                return self.reading.error("volatile", name_place, format!("`{name}` does not depend on the data alone"), help);
            }
            Advice::Instead(help) => {
                return self.reading.error("function-unknown", name_place, format!("there is no function `{name}` in rules"), help);
            }
            Advice::Nearest(hint) => {
                let help = "FUNCTIONS.md lists the functions of rules";
                return self.reading.error("function-unknown", name_place, format!("there is no function `{name}` in rules{hint}"), help);
            }
        }
        if let FunctionArguments::List(list) = &call.args {
            let named = list.args.iter().find(|argument| !matches!(argument, FunctionArg::Unnamed(_)));
            if let Some(argument) = named {
                let place = match argument {
                    FunctionArg::Named { name, .. } => self.source().of_span(name.span),
                    other => self.source().of_span(other.span()),
                };
                let end = self.source().of(expr);
                let place = place
                    .zip(end)
                    .map(|(place, end)| Place { end_column: end.end_column.saturating_sub(1).max(place.end_column), ..place })
                    .or(place);
                return self.reading.error("argument-named", place, "arguments have no names here", "write them in their order");
            }
            if name == "unique" && list.args.len() != 1 {
                let place = self.source().of(expr);
                let message = format!("`unique` is called with {} arguments", list.args.len());
                return self.reading.error("argument-count", place, message, "write unique(x); of several, unique(a || ' ' || b)");
            }
            if list.duplicate_treatment.is_some() && list.args.len() > 1 {
                let place = self.source().of(expr);
                let (message, help) = match name.as_str() {
                    "count" | "unique" => {
                        (format!("`{name}` counts the values of one expression"), "join them: count(DISTINCT a || ' ' || b)".to_owned())
                    }
                    _ => (format!("`{name}` has no DISTINCT"), format!("write {name}(…) without it")),
                };
                return self.reading.error("argument-count", place, message, &help);
            }
        }
        if ORDERED.contains(&name.as_str()) {
            let ordered = match &call.over {
                Some(WindowType::WindowSpec(spec)) => {
                    !spec.order_by.is_empty() || spec.window_name.as_ref().is_some_and(|name| !self.is_unordered(&name.value))
                }
                Some(WindowType::NamedWindow(window)) => !self.is_unordered(&window.value),
                None => true,
            };
            if !ordered {
                let place = self.source().of(expr);
                let message = format!("`{name}` without ORDER BY depends on the order in which rows come");
                self.reading.error("order-missing", place, message, "write OVER (PARTITION BY … ORDER BY u.time, u.id)");
            }
        }
    }

    fn is_unordered(&self, window: &str) -> bool {
        self.windows.iter().flatten().any(|known| known.eq_ignore_ascii_case(window))
    }

    fn binary(&mut self, expr: &Expr, left: &Expr, op: &BinaryOperator, right: &Expr) {
        let place = self.source().of(expr);
        match op {
            BinaryOperator::BitwiseXor
            | BinaryOperator::BitwiseAnd
            | BinaryOperator::BitwiseOr
            | BinaryOperator::PGBitwiseXor
            | BinaryOperator::PGBitwiseShiftLeft
            | BinaryOperator::PGBitwiseShiftRight
            | BinaryOperator::PGExp => {
                self.reading.error(
                    "operator",
                    place,
                    "the operators ^ & | # are not for money",
                    "^ is no power here; write the product out",
                );
            }
            BinaryOperator::Divide | BinaryOperator::Modulo if is_zero(right) => {
                self.reading.error("division-by-zero", place, "division by zero", "nullif(x, 0) as a divisor gives null where x is 0");
            }
            BinaryOperator::Eq
            | BinaryOperator::NotEq
            | BinaryOperator::Lt
            | BinaryOperator::LtEq
            | BinaryOperator::Gt
            | BinaryOperator::GtEq
                if is_null_literal(left) || is_null_literal(right) =>
            {
                self.reading.error("null-comparison", place, "nothing equals NULL, so this is never true", "write IS NULL or IS NOT NULL");
            }
            _ => {}
        }
    }
}

fn has_no_group(select: &Select) -> bool {
    matches!(&select.group_by, sqlparser::ast::GroupByExpr::Expressions(keys, _) if keys.is_empty())
}

fn is_zero(expr: &Expr) -> bool {
    number_literal(expr).is_some_and(|digits| digits.parse::<ratemill_schemas::Decimal>().is_ok_and(|number| number.raw() == 0))
}

/// Visits the expression without its subqueries.
pub(super) fn each_own(expr: &Expr, visit: &mut dyn FnMut(&Expr)) {
    struct Own<'v> {
        visit: &'v mut dyn FnMut(&Expr),
        queries: usize,
    }

    impl Visitor for Own<'_> {
        type Break = ();

        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.queries += 1;
            ControlFlow::Continue(())
        }

        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.queries -= 1;
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            if self.queries == 0 {
                (self.visit)(expr);
            }
            ControlFlow::Continue(())
        }
    }

    let _ = expr.visit(&mut Own { visit, queries: 0 });
}

impl Visitor for Syntax<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let start = self.source().of_span(query.span());
        if returns_amounts(&query.body)
            && let Some(place) = drops_equal_rows(&query.body, self.reading)
        {
            self.reading.warn("union-distinct", Some(place), "UNION drops rows that are equal", "write UNION ALL");
        }
        if let Some(lock) = query.locks.first() {
            let word = lock.lock_type.to_string();
            let place = self.source().words(None, &["FOR", &word]);
            self.reading.error("reads-only", place, "a rule only reads", &format!("take FOR {word} out"));
        }
        if query.settings.is_some() || query.format_clause.is_some() || query.for_clause.is_some() || !query.pipe_operators.is_empty() {
            self.reading.error("unsupported", start, "SETTINGS, FORMAT, FOR and |> are not allowed in rules", "take them out");
        }
        if let SetExpr::Insert(statement) | SetExpr::Update(statement) | SetExpr::Delete(statement) | SetExpr::Merge(statement) =
            query.body.as_ref()
        {
            let word = statement.to_string().split_whitespace().next().unwrap_or_default().to_owned();
            let place = self.source().words(None, &[&word]);
            let end = self.source().of_span(statement.span());
            let place = place.zip(end).map(|(place, end)| Source::join(place, end)).or(place);
            self.reading.error("reads-only", place, "a rule only reads", "write SELECT; what the rule returns becomes charges");
        }
        if query.with.as_ref().is_some_and(|with| with.recursive) {
            let place = self.source().words(None, &["RECURSIVE"]);
            self.reading.error(
                "recursive",
                place,
                "recursive queries are not allowed in rules",
                "a calendar can be a reference table; period_starts(…) gives months",
            );
        }
        self.limits(query);
        unions(&query.body, self.reading);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        let unordered = select.named_window.iter().filter_map(|window| match &window.1 {
            NamedWindowExpr::WindowSpec(spec) if spec.order_by.is_empty() && spec.window_name.is_none() => Some(window.0.value.clone()),
            _ => None,
        });
        self.windows.push(unordered.collect());
        self.clauses(select);
        self.misplaced(select);
        self.outside(select);
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, _: &Select) -> ControlFlow<()> {
        self.windows.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if is_aggregate(expr) {
            if self.aggregates > 0 {
                let place = self.source().of(expr);
                self.reading.error(
                    "aggregate-place",
                    place,
                    "an aggregate cannot stand inside another",
                    "compute the inner one in a subquery",
                );
            }
            self.aggregates += 1;
        }
        if matches!(expr, Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. }) {
            if self.aggregates > 0 {
                let place = self.source().of(expr);
                let help = if matches!(expr, Expr::Subquery(_)) {
                    "write sum(x) * (SELECT …), or join the table and name its column"
                } else {
                    "join the table, or say it in WHERE"
                };
                self.reading.error("subquery", place, "a subquery cannot stand inside an aggregate", help);
            }
            // A query of its own groups for itself.
            self.aggregates = 0;
        }
        match expr {
            Expr::BinaryOp { left, op, right } => self.binary(expr, left, op, right),
            Expr::InSubquery { negated: true, .. } => {
                let place = self.source().of(expr);
                self.reading.warn(
                    "null-comparison",
                    place,
                    "NOT IN is never true once the subquery gives a null",
                    "write NOT EXISTS (SELECT 1 FROM … WHERE … = …)",
                );
            }
            Expr::InList { list, .. } if list.iter().any(is_null_literal) => {
                let place = self.source().of(expr);
                self.reading.error(
                    "null-comparison",
                    place,
                    "NULL in a list equals nothing, and NOT IN is then never true",
                    "take NULL out; write OR … IS NULL",
                );
            }
            Expr::Value(value) => match &value.value {
                Value::Number(text, _) => {
                    if let Err(error) = ratemill_schemas::Decimal::parse(text.as_bytes()) {
                        let place = self.source().of(expr);
                        self.reading.error(
                            "number",
                            place,
                            format!("`{text}` {error}"),
                            "a number has up to 20 digits before and 18 after the point",
                        );
                    }
                }
                Value::Placeholder(name) => {
                    let place = self.source().of(expr);
                    self.reading.error(
                        "placeholder",
                        place,
                        format!("nobody fills in `{name}`"),
                        "write the value, or keep it in a reference table",
                    );
                }
                _ => {}
            },
            Expr::AtTimeZone { .. } => {
                let place = self.source().of(expr);
                let help = "write local_date(u.time, 'Europe/London'), time_bucket(u.time, 'day', 'Europe/London') or in_time_of_day(…)";
                self.reading.error("at-time-zone", place, "an instant has no time zone of its own", help);
            }
            Expr::Identifier(name) if name.quote_style.is_none() && functions::is_volatile(&name.value) => {
                let place = self.source().of(expr);
                let help = "a charge must come out the same whenever it is rated: use window_start and window_end of billing_window";
                self.reading.error("volatile", place, format!("`{name}` does not depend on the data alone"), help);
            }
            Expr::Function(call) => self.call(expr, call),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if is_aggregate(expr) {
            self.aggregates = self.aggregates.saturating_sub(1);
        }
        ControlFlow::Continue(())
    }
}

/// Every output column has a name of its own, once.
fn names(select: &Select, reading: &mut Reading<'_>) {
    let mut known: Vec<String> = Vec::new();
    for (index, item) in select.projection.iter().enumerate() {
        let (name, place) = match item {
            SelectItem::UnnamedExpr(expr) => match column_name(expr) {
                Some(name) => (crate::tree::folded(name), reading.source.of(expr)),
                None => {
                    let place = reading.source.of(expr);
                    let help = if number_literal(expr).is_some() {
                        "add AS name; a number is written without commas: 1000.00"
                    } else {
                        "add AS name"
                    };
                    reading.error("column-unnamed", place, format!("column {} has no name", index + 1), help);
                    continue;
                }
            },
            SelectItem::ExprWithAlias { expr, alias } => {
                let place = reading.source.of_span(alias.span);
                if !crate::statement::is_plain_name(&crate::tree::folded(alias)) && alias.quote_style.is_some() {
                    let taken = known.iter().any(|other| other.eq_ignore_ascii_case(&alias.value));
                    if !taken {
                        let message = format!("`{}` cannot be the name of a column", alias.value);
                        reading.error("column-name", place, message, "small letters, digits and _, beginning with a letter");
                        continue;
                    }
                }
                let whole = reading.source.of(expr).zip(place).map(|(expr, alias)| Source::join(expr, alias));
                (crate::tree::folded(alias), whole.or(place))
            }
            SelectItem::QualifiedWildcard(..) | SelectItem::Wildcard(_) => {
                let place = reading.source.of_span(item.span());
                let place = place.map(|place| match reading.source.token_at(place.end_line, place.end_column) {
                    Some((token, star)) if *token == sqlparser::tokenizer::Token::Mul => Source::join(place, star),
                    _ => place,
                });
                // Columns that a CTE lists do not change by themselves.
                let of_table = relations(select)
                    .filter_map(table_and_alias)
                    .any(|(table, _)| reading.reference.table(&table).is_some() || table == "usage");
                if of_table {
                    let help = "name the columns: they are part of what tells charges apart";
                    reading.error("select-star", place, "what `*` returns changes when a table gets a column", help);
                }
                continue;
            }
            SelectItem::ExprWithAliases { .. } => continue,
        };
        if known.iter().any(|other| other.eq_ignore_ascii_case(&name)) {
            reading.error("column-twice", place, format!("`{name}` is returned twice"), "give one of them another name, or take it out");
        }
        known.push(name);
    }
}

/// The names that a SELECT gives its columns, where it gives any.
fn column_names(select: &Select) -> Vec<Option<String>> {
    select
        .projection
        .iter()
        .map(|item| match item {
            SelectItem::UnnamedExpr(expr) => column_name(expr).map(crate::tree::folded),
            SelectItem::ExprWithAlias { alias, .. } => Some(crate::tree::folded(alias)),
            _ => None,
        })
        .collect()
}

/// UNION goes by position, not by name.
fn unions(body: &SetExpr, reading: &mut Reading<'_>) {
    let SetExpr::SetOperation { left, right, .. } = body else { return };
    unions(left, reading);
    unions(right, reading);
    let (Some(first), Some(second)) = (selects(left).first().copied(), selects(right).first().copied()) else { return };
    let (ours, theirs) = (column_names(first), column_names(second));
    let has_star =
        |select: &Select| select.projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
    if has_star(first) || has_star(second) {
        return;
    }
    let word = union_word(second, reading.source);
    if ours.len() != theirs.len() {
        let missing: Vec<String> =
            ours.iter().flatten().filter(|name| !theirs.contains(&Some((*name).clone()))).map(|name| format!("`{name}`")).collect();
        let missing = if missing.is_empty() { String::new() } else { format!(": {} is missing", missing.join(", ")) };
        let message = format!("this SELECT has {} columns, the first {}{missing}", theirs.len(), ours.len());
        return reading.error("union", word, message, "both sides of UNION return the same columns in the same order");
    }
    for (index, (our, their)) in ours.iter().zip(&theirs).enumerate() {
        let (Some(our), Some(their)) = (our, their) else { continue };
        if our != their && ours.contains(&Some(their.clone())) {
            let place = match &second.projection[index] {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => reading.source.of(expr),
                _ => None,
            };
            let message = format!("column {} of this SELECT is `{their}`, in the first it is `{our}`", index + 1);
            return reading.error(
                "union-order",
                place,
                message,
                "UNION goes by position: write the columns in the order of the first SELECT",
            );
        }
    }
}

/// The UNION, INTERSECT or EXCEPT before a SELECT, with its ALL.
fn union_word(second: &Select, source: &Source) -> Option<Place> {
    let place = source.of_span(second.span())?;
    let (token, before) = source.token_before(place.line, place.column)?;
    let is_all = matches!(token, sqlparser::tokenizer::Token::Word(word) if word.value.eq_ignore_ascii_case("ALL"));
    match is_all.then(|| source.token_before(before.line, before.column)).flatten() {
        Some((_, union)) => Some(Source::join(union, before)),
        None => Some(before),
    }
}

/// Whether rows of the query are more than names: two that are equal may both count.
fn returns_amounts(body: &SetExpr) -> bool {
    selects(body).first().is_some_and(|select| {
        select.projection.iter().any(|item| {
            let name = match item {
                SelectItem::ExprWithAlias { alias, .. } => Some(alias.value.clone()),
                SelectItem::UnnamedExpr(expr) => column_name(expr).map(|name| name.to_string()),
                _ => None,
            };
            name.is_some_and(|name| ["amount", "quantity", "units", "cost", "price"].contains(&name.to_lowercase().as_str()))
        })
    })
}

/// Where charges are joined by a UNION without ALL.
fn drops_equal_rows(body: &SetExpr, reading: &Reading<'_>) -> Option<Place> {
    let SetExpr::SetOperation { left, op: SetOperator::Union, set_quantifier, right } = body else { return None };
    let distinct = matches!(set_quantifier, sqlparser::ast::SetQuantifier::None | sqlparser::ast::SetQuantifier::Distinct);
    if distinct { union_word(selects(right).first()?, reading.source) } else { drops_equal_rows(left, reading) }
}

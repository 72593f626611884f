//! What a rule may say, but hardly means.

use std::ops::ControlFlow;

use ratemill_schemas::WindowSpec;
use sqlparser::ast::{
    BinaryOperator, DuplicateTreatment, Expr, Function, FunctionArguments, GroupByExpr, Ident, LimitClause, OrderByKind, Query, Select,
    SelectItem, SetExpr, Visit, Visitor, WindowType,
};

use super::Reading;
use crate::tree::{
    alias_of, any, arguments, call_name, column_name, conjuncts, folded, is_aggregate, is_column, is_column_of, is_left_join,
    mentions_table, number_literal, plain, selects, tables_in, text_literal, usage_aliases,
};

pub(super) fn check(query: &Query, reading: &mut Reading<'_>) {
    if let Some(order) = &query.order_by
        && query.limit_clause.is_none()
        && query.fetch.is_none()
        && let OrderByKind::Expressions(keys) = &order.kind
    {
        let place = keys.first().zip(keys.last()).and_then(|(first, last)| reading.source.between(&first.expr, &last.expr));
        reading.warn("order-unused", place, "charges have no order", "take ORDER BY out");
    }
    for select in selects(&query.body) {
        nullable(select, reading);
    }
    let reads_opening = !reading.options.carry.is_empty();
    let _ = query.visit(&mut Warnings { reading, usages: Vec::new(), reads_opening });
}

struct Warnings<'r, 'a> {
    reading: &'r mut Reading<'a>,
    /// Names of usage in the SELECTs around.
    usages: Vec<Vec<Ident>>,
    reads_opening: bool,
}

impl Warnings<'_, '_> {
    fn warn(&mut self, expr: &Expr, code: &'static str, message: &str, help: &str) {
        let place = self.reading.source.of(expr);
        self.reading.warn(code, place, message, help);
    }

    fn is_usage(&self, expr: &Expr, column: &str) -> bool {
        let qualified = matches!(plain(expr), Expr::CompoundIdentifier(_));
        qualified && self.usages.last().is_some_and(|usages| usages.iter().any(|usage| is_column(expr, usage, column)))
    }

    fn call(&mut self, expr: &Expr, call: &Function) {
        let Some(name) = call_name(call) else { return };
        let given = arguments(call);
        if name == "sum"
            && matches!(&call.args, FunctionArguments::List(list) if list.duplicate_treatment == Some(DuplicateTreatment::Distinct))
        {
            self.warn(expr, "sum-distinct", "two events of the same quantity count once", "write sum(x) without DISTINCT");
        }
        if let ("sum", [argument]) = (name.as_str(), given.as_slice())
            && let Expr::Function(model) = plain(argument)
            && ["graduated", "volume", "stairstep", "tiered_blocks", "graduated_percentage"]
                .contains(&call_name(model).unwrap_or_default().as_str())
            && arguments(model).first().is_some_and(|quantity| self.is_usage(quantity, "quantity"))
        {
            let help = format!("write {}(sum({}), …)", model.name, arguments(model)[0]);
            self.warn(argument, "tiers-per-event", "every event begins at the first tier", &help);
        }
        if matches!(name.as_str(), "weighted" | "register_usage")
            && !self.reads_opening
            && given.get(1).is_some_and(|time| self.is_usage(time, "time"))
            && self.reading.options.window != WindowSpec::BillingPeriod
        {
            let message = "a level holds from before the window, and without opening it is not known until the first event";
            self.warn(expr, "level-without-opening", message, "add carry = 'subject, meter', and UNION ALL the rows of opening");
        }
        if let Some(WindowType::WindowSpec(spec)) = &call.over
            && ["row_number", "lag", "lead", "first_value", "last_value", "nth_value", "ntile"].contains(&name.as_str())
            && let [key] = spec.order_by.as_slice()
            && self.is_usage(&key.expr, "time")
        {
            let place = self.reading.source.of(&key.expr);
            self.reading.warn("order-ties", place, "events of the same time come in any order", "write ORDER BY u.time, u.id");
        }
    }

    fn limit(&mut self, query: &Query) {
        let limited = matches!(&query.limit_clause, Some(LimitClause::LimitOffset { limit: Some(_), .. }));
        let (true, Some(order), SetExpr::Select(select)) = (limited, &query.order_by, query.body.as_ref()) else { return };
        let OrderByKind::Expressions(keys) = &order.kind else { return };
        let GroupByExpr::Expressions(groups, _) = &select.group_by else { return };
        let is_key = |expr: &Expr| {
            keys.iter()
                .any(|key| key.expr == *expr || column_name(&key.expr).zip(column_name(expr)).is_some_and(|(a, b)| a.value == b.value))
        };
        let by_id = keys.iter().any(|key| {
            column_name(&key.expr).is_some_and(|column| ["id", "customer_id", "contract_id", "subject"].contains(&column.value.as_str()))
        });
        let total = if groups.is_empty() { by_id } else { groups.iter().all(is_key) || by_id };
        if !total && tables_in(query).contains("usage") {
            let place = keys.first().zip(keys.last()).and_then(|(first, last)| self.reading.source.between(&first.expr, &last.expr));
            let help = "go on with columns until no two rows are equal, such as u.time, u.id";
            self.reading.warn("limit-ties", place, "LIMIT takes any of the rows that are equal in ORDER BY", help);
        }
    }

    /// Conditions of WHERE.
    fn conditions(&mut self, select: &Select) {
        for condition in select.selection.iter().flat_map(|selection| conjuncts(selection)) {
            match condition {
                Expr::Between { expr, negated: false, low, high } => {
                    let bounds = |expr: &Expr, name: &str| column_name(expr).is_some_and(|column| column.value.eq_ignore_ascii_case(name));
                    if self.is_usage(expr, "time") && bounds(low, "window_start") && bounds(high, "window_end") {
                        let help = "usage holds the window already; elsewhere write >= and <";
                        self.warn(condition, "half-open", "BETWEEN takes the first instant after the window, too", help);
                    }
                }
                Expr::BinaryOp { left, op, right } if is_comparison(op) => {
                    let fixed = |expr: &Expr| text_literal(expr).is_some() || matches!(plain(expr), Expr::TypedString(_));
                    if (self.is_usage(left, "time") && fixed(right)) || (self.is_usage(right, "time") && fixed(left)) {
                        let help = "prices that change belong in reference data; a rule that begins has effective_from";
                        self.warn(condition, "fixed-time", "a date is written into the rule", help);
                    }
                }
                _ => {}
            }
        }
        let optional: Vec<Ident> = optional(select);
        for condition in select.selection.iter().flat_map(|selection| conjuncts(selection)) {
            let Expr::BinaryOp { left, op, right } = condition else { continue };
            let is_optional = |expr: &Expr| optional.iter().any(|alias| is_column_of(expr, alias));
            if is_comparison(op) && (is_optional(left) || is_optional(right)) {
                let message = "this drops the rows that LEFT JOIN keeps";
                self.warn(condition, "outer-join-filtered", message, "move the condition into ON, or write JOIN");
            }
        }
    }
}

fn is_comparison(op: &BinaryOperator) -> bool {
    use BinaryOperator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq)
}

/// What LEFT JOIN joins.
fn optional(select: &Select) -> Vec<Ident> {
    select.from.iter().flat_map(|item| &item.joins).filter(|join| is_left_join(join)).filter_map(|join| alias_of(&join.relation)).collect()
}

/// Columns that every charge has, and that can be null here.
fn nullable(select: &Select, reading: &mut Reading<'_>) {
    let optional = optional(select);
    let GroupByExpr::Expressions(keys, _) = &select.group_by else { return };
    let reads_usage = !usage_aliases(select).is_empty();
    for item in &select.projection {
        let (name, expr) = match item {
            SelectItem::ExprWithAlias { expr, alias } => (folded(alias), expr),
            SelectItem::UnnamedExpr(expr) => match column_name(expr) {
                Some(name) => (folded(name), expr),
                None => continue,
            },
            _ => continue,
        };
        let of_optional = |expr: &Expr| optional.iter().find(|alias| mentions_table(expr, alias)).cloned();
        match name.as_str() {
            "customer_id" | "currency" => {
                let is_bare = matches!(plain(expr), Expr::CompoundIdentifier(_));
                if let Some(alias) = of_optional(expr).filter(|_| is_bare)
                    && !select.selection.as_ref().is_some_and(|condition| mentions_table(condition, &alias))
                {
                    let message = format!("`{name}` is null where LEFT JOIN finds no `{alias}`");
                    reading.warn("identity-nullable", reading.source.of(expr), message, "write JOIN, or begin with the customers");
                }
            }
            "amount" => {
                let guarded = any(expr, |part| match part {
                    Expr::Case { .. } => true,
                    Expr::Function(call) => call_name(call)
                        .is_some_and(|name| ["coalesce", "nvl", "greatest", "least", "count", "unique"].contains(&name.as_str())),
                    _ => false,
                });
                let sums_optional = any(expr, |part| is_aggregate(part) && of_optional(part).is_some());
                let sums_all = keys.is_empty() && reads_usage && select.having.is_none() && any(expr, is_aggregate);
                if !guarded && (sums_optional || sums_all) {
                    let message = "a sum over no rows is null, and `amount` may not be";
                    reading.warn("amount-nullable", reading.source.of(expr), message, "write coalesce(sum(…), 0)");
                }
            }
            _ => {}
        }
    }
}

/// Whether a quotient by this literal can have more than 18 places.
fn is_endless(divisor: &Expr) -> bool {
    let Some(digits) = number_literal(divisor) else { return false };
    let whole: String = digits.chars().filter(char::is_ascii_digit).collect();
    let Ok(mut number) = whole.parse::<u128>() else { return false };
    if number == 0 {
        return false;
    }
    for factor in [2, 5] {
        while number.is_multiple_of(factor) {
            number /= factor;
        }
    }
    // A factor of 3, 7, … may be taken out by the dividend, but none that is known here.
    number > 1
}

impl Visitor for Warnings<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        self.limit(query);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.usages.push(usage_aliases(select));
        self.conditions(select);
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, _: &Select) -> ControlFlow<()> {
        self.usages.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(call) => self.call(expr, call),
            Expr::BinaryOp { left, op: BinaryOperator::Multiply, right } => {
                for side in [left, right] {
                    if let Expr::BinaryOp { op: BinaryOperator::Divide, right: divisor, .. } = plain(side)
                        && is_endless(divisor)
                    {
                        let message = "the quotient is rounded to 18 places before it is multiplied";
                        self.warn(side, "quotient-rounded", message, "multiply first, then divide");
                    }
                }
            }
            Expr::BinaryOp { left, op: BinaryOperator::Eq, right } if left == right => {
                self.warn(expr, "always-true", "both sides are the same column", "compare it with that of the other table");
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

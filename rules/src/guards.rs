//! What a condition excludes is not computed: `sum(x / y) FILTER (WHERE y <> 0)` must not divide by zero.
//!
//! The planner computes the argument of an aggregate for all rows and drops those of FILTER then; of AND and OR it
//! computes both sides. Only CASE computes a branch for its rows alone, so an expression that can fail is put into one.
//! Rows that a condition keeps see no difference. Where a guard is null the condition was not true either way, so this is
//! only done where null and false are the same: in WHEN, FILTER, WHERE, HAVING and ON.

use std::ops::ControlFlow;

use sqlparser::ast::{BinaryOperator, CaseWhen, DataType as SqlType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments};
use sqlparser::ast::{VisitMut, VisitorMut};

use crate::functions::signature;
use crate::tree::{any, call_name, is_aggregate};

/// How many conditions that can fail themselves are minded as guards of the next; each doubles what is computed.
const FALLIBLE_GUARDS_MAX: usize = 3;

/// Functions with a signature that fail for no argument but one too large.
const SAFE: [&str; 4] = ["abs", "ceil", "floor", "round"];

/// Guards the arguments of an aggregate by its FILTER.
pub(crate) fn filtered(call: &mut Function) {
    let Some(filter) = call.filter.as_mut() else { return };
    condition(filter, Guarded::Comparisons);
    let filter = filter.as_ref().clone();
    let FunctionArguments::List(list) = &mut call.args else { return };
    for argument in &mut list.args {
        if let FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) = argument
            && is_fallible(value)
        {
            *value = when(filter.clone(), value.clone());
        }
    }
}

/// How a condition is guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guarded {
    /// The parts that can fail: WHERE and ON, whose comparisons the planner must see.
    Parts,
    /// Whole comparisons: where expressions may stand that GROUP BY has, which must stay as they are.
    Comparisons,
}

/// Guards what can fail in a condition by what stands before it.
pub(crate) fn condition(expr: &mut Expr, guarded: Guarded) {
    match expr {
        Expr::Nested(inner) => condition(inner, guarded),
        Expr::BinaryOp { op: op @ (BinaryOperator::And | BinaryOperator::Or), .. } => {
            let op = op.clone();
            term(expr, &op, guarded, &mut Vec::new(), &mut 0);
        }
        _ => {}
    }
}

/// Guards a term that `op` joins to those before it.
fn term(expr: &mut Expr, op: &BinaryOperator, guarded: Guarded, guards: &mut Vec<Expr>, fallible: &mut usize) {
    match expr {
        Expr::Nested(inner) => term(inner, op, guarded, guards, fallible),
        Expr::BinaryOp { left, op: own, right } if own == op => {
            term(left, op, guarded, guards, fallible);
            term(right, op, guarded, guards, fallible);
        }
        expr => {
            condition(expr, guarded);
            let fails = holds_fallible(expr);
            if fails && let Some(guard) = guards.iter().cloned().reduce(|left, right| joined(left, op, right)) {
                let make = |value| match op {
                    BinaryOperator::And => when(guard.clone(), value),
                    _ => otherwise(guard.clone(), value),
                };
                if guarded == Guarded::Comparisons && can_guard(expr) {
                    *expr = make(expr.clone());
                } else {
                    wrap(expr, &make);
                }
            }
            if can_guard(expr) && (!fails || *fallible < FALLIBLE_GUARDS_MAX) {
                guards.push(expr.clone());
                *fallible += usize::from(fails);
            }
        }
    }
}

fn joined(left: Expr, op: &BinaryOperator, right: Expr) -> Expr {
    let nested = |expr: Expr| Box::new(Expr::Nested(Box::new(expr)));
    Expr::BinaryOp { left: nested(left), op: op.clone(), right: nested(right) }
}

fn when(condition: Expr, value: Expr) -> Expr {
    case(CaseWhen { condition, result: value }, None)
}

/// The value where the condition is not true.
fn otherwise(condition: Expr, value: Expr) -> Expr {
    let null = Expr::Value(sqlparser::ast::Value::Null.with_empty_span());
    case(CaseWhen { condition, result: null }, Some(Box::new(value)))
}

fn case(branch: CaseWhen, else_result: Option<Box<Expr>>) -> Expr {
    let token = sqlparser::ast::helpers::attached_token::AttachedToken::empty;
    Expr::Case { case_token: token(), end_token: token(), operand: None, conditions: vec![branch], else_result }
}

/// Whether it is computed row by row: subqueries stand in few places.
fn can_guard(expr: &Expr) -> bool {
    !any(expr, |part| {
        matches!(part, Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::AnyOp { .. } | Expr::AllOp { .. })
    })
}

/// Whether what is inside is computed for other rows.
fn is_boundary(expr: &Expr) -> bool {
    let is_query =
        matches!(expr, Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::AnyOp { .. } | Expr::AllOp { .. });
    is_query || is_aggregate(expr) || matches!(expr, Expr::Function(call) if call.over.is_some())
}

/// Whether computing it can fail for some row.
fn is_fallible(expr: &Expr) -> bool {
    let depends = any(expr, |part| matches!(part, Expr::Identifier(_) | Expr::CompoundIdentifier(_)) || is_aggregate(part));
    depends && can_guard(expr) && any(expr, fails)
}

/// Whether the outermost operation itself can fail.
fn fails(expr: &Expr) -> bool {
    match expr {
        Expr::BinaryOp { op: BinaryOperator::Divide | BinaryOperator::Modulo, .. } => true,
        Expr::Cast { data_type, .. } => !matches!(data_type, SqlType::Varchar(_) | SqlType::Text | SqlType::String(_)),
        Expr::Function(call) if call.over.is_none() && !is_aggregate(expr) => {
            call_name(call).is_some_and(|name| !SAFE.contains(&name.as_str()) && signature(&name).is_some())
        }
        _ => false,
    }
}

/// Whether a part of a condition that is its own, and not of an aggregate or a subquery in it, can fail.
fn holds_fallible(expr: &Expr) -> bool {
    let mut probe = expr.clone();
    let mut found = Wrap { make: &|value| value, inside: 0, found: false };
    let _ = VisitMut::visit(&mut probe, &mut found);
    found.found
}

/// Puts every part that can fail into a CASE; the outermost, so that what it is made of is in it, too.
fn wrap(expr: &mut Expr, make: &dyn Fn(Expr) -> Expr) {
    let _ = VisitMut::visit(expr, &mut Wrap { make, inside: 0, found: false });
}

struct Wrap<'m> {
    make: &'m dyn Fn(Expr) -> Expr,
    /// How many aggregates, subqueries and parts that can fail are around.
    inside: usize,
    found: bool,
}

impl Wrap<'_> {
    fn is_whole(expr: &Expr) -> bool {
        fails(expr) && is_fallible(expr)
    }
}

impl VisitorMut for Wrap<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if is_boundary(expr) || Self::is_whole(expr) {
            self.inside += 1;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if is_boundary(expr) || Self::is_whole(expr) {
            self.inside -= 1;
            if self.inside == 0 && !is_boundary(expr) {
                self.found = true;
                *expr = (self.make)(expr.clone());
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Expr {
        sqlparser::parser::Parser::new(&crate::dialect::RuleDialect).try_with_sql(text).unwrap().parse_expr().unwrap()
    }

    fn check(text: &str, expected: &str) {
        let mut expr = parsed(text);
        condition(&mut expr, Guarded::Parts);
        assert_eq!(expr.to_string(), expected);
    }

    fn check_whole(text: &str, expected: &str) {
        let mut expr = parsed(text);
        condition(&mut expr, Guarded::Comparisons);
        assert_eq!(expr.to_string(), expected);
    }

    fn check_filter(text: &str, expected: &str) {
        let mut expr = parsed(text);
        let Expr::Function(call) = &mut expr else { panic!("{text}") };
        filtered(call);
        assert_eq!(expr.to_string(), expected);
    }

    #[test]
    fn what_can_fail_is_guarded_by_the_conditions_before_it() {
        check("a = 1 AND b > 2", "a = 1 AND b > 2");
        check("1 / a > 2 AND b > 2", "1 / a > 2 AND b > 2");
        check("a <> 0 AND 1 / a > 2", "a <> 0 AND CASE WHEN a <> 0 THEN 1 / a END > 2");
        check(
            "a <> 0 AND (b = 'x' AND parse_decimal(c) > 2)",
            "a <> 0 AND (b = 'x' AND CASE WHEN (a <> 0) AND (b = 'x') THEN parse_decimal(c) END > 2)",
        );
        check("a = 0 OR 1 / a > 2", "a = 0 OR CASE WHEN a = 0 THEN NULL ELSE 1 / a END > 2");
        check(
            "a = 0 OR b <> 0 AND 1 / b > 2",
            "a = 0 OR b <> 0 AND CASE WHEN b <> 0 THEN CASE WHEN a = 0 THEN NULL ELSE 1 / b END END > 2",
        );
        // Of an aggregate the rows are not those of the condition.
        check("sum(a) <> 0 AND sum(1 / a) > 2", "sum(a) <> 0 AND sum(1 / a) > 2");
        check("sum(a) <> 0 AND 1 / sum(a) > 2", "sum(a) <> 0 AND CASE WHEN sum(a) <> 0 THEN 1 / sum(a) END > 2");
        check("a IN (SELECT b FROM c) AND 1 / a > 2", "a IN (SELECT b FROM c) AND 1 / a > 2");
        check("a = 1 AND b > 4 / 2", "a = 1 AND b > 4 / 2");
    }

    #[test]
    fn what_is_grouped_by_stays_as_it_is() {
        check_whole("sum(a) > 0 AND weekday(b) <> 3", "sum(a) > 0 AND CASE WHEN sum(a) > 0 THEN weekday(b) <> 3 END");
        check_whole("a = 0 OR 1 / a > 2", "a = 0 OR CASE WHEN a = 0 THEN NULL ELSE 1 / a > 2 END");
    }

    #[test]
    fn many_terms_do_not_grow_without_bound() {
        for op in [" OR ", " AND "] {
            let mut expr = parsed(&vec!["1 / a = 2"; 40].join(op));
            condition(&mut expr, Guarded::Parts);
            assert!(expr.to_string().len() < 40_000, "{}", expr.to_string().len());
        }
    }

    #[test]
    fn arguments_that_can_fail_are_guarded_by_filter() {
        check_filter("sum(a) FILTER (WHERE b = 1)", "sum(a) FILTER (WHERE b = 1)");
        check_filter("count(*) FILTER (WHERE b = 1)", "count(*) FILTER (WHERE b = 1)");
        check_filter("sum(1 / a) FILTER (WHERE a <> 0)", "sum(CASE WHEN a <> 0 THEN 1 / a END) FILTER (WHERE a <> 0)");
        check_filter(
            "percentile(parse_decimal(a), 100 / 2) FILTER (WHERE b = 1)",
            "percentile(CASE WHEN b = 1 THEN parse_decimal(a) END, 100 / 2) FILTER (WHERE b = 1)",
        );
    }
}

//! Functions and operators that the planner has under another name, or not exactly.

use std::ops::ControlFlow;

use ratemill_schemas::Rounding;
use sqlparser::ast::{
    BinaryOperator, CeilFloorKind, DuplicateTreatment, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList,
    FunctionArguments, Ident, Join, JoinConstraint, JoinOperator, ObjectName, Select, Spanned, TableFactor, TableWithJoins, UnaryOperator,
    Value, VisitorMut,
};

use crate::guards::{self, Guarded};
use crate::tree::{any, single_name};

/// Writes `unique`, `ceil`, `floor`, rounding modes and negation as the planner has them.
pub(crate) struct Plain {
    /// Mode of `round_money` and `round` where a call names none.
    pub(crate) rounding: Option<Rounding>,
}

impl VisitorMut for Plain {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) => {
                self.function(function);
                guards::filtered(function);
            }
            Expr::Case { operand: None, conditions, .. } => {
                conditions.iter_mut().for_each(|when| guards::condition(&mut when.condition, Guarded::Comparisons))
            }
            _ => {}
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
            let difference = Expr::BinaryOp { left: Box::new(zero), op: BinaryOperator::Minus, right: Box::new((**inner).clone()) };
            *expr = Expr::Nested(Box::new(difference));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        let having = select.having.iter_mut().chain(&mut select.qualify);
        having.for_each(|condition| guards::condition(condition, Guarded::Comparisons));
        // A guard that names a table around a subquery would tie the subquery to it.
        if select.selection.as_ref().is_some_and(|selection| names_tables_around(selection, &select.from)) {
            return ControlFlow::Continue(());
        }
        for join in select.from.iter_mut().flat_map(|item| &mut item.joins) {
            if let Some(on) = constraint_mut(join) {
                guards::condition(on, Guarded::Parts);
            }
        }
        select.selection.iter_mut().for_each(|condition| guards::condition(condition, Guarded::Parts));
        ControlFlow::Continue(())
    }
}

/// Whether a condition has columns of tables that are not in its own FROM.
fn names_tables_around(condition: &Expr, from: &[TableWithJoins]) -> bool {
    let relations = from.iter().flat_map(|item| std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation)));
    let names: Vec<String> = relations
        .filter_map(|relation| match relation {
            TableFactor::Table { alias: Some(alias), .. } | TableFactor::Derived { alias: Some(alias), .. } => {
                Some(alias.name.value.clone())
            }
            TableFactor::Table { name, .. } => name.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.clone()),
            _ => None,
        })
        .collect();
    any(
        condition,
        |part| matches!(part, Expr::CompoundIdentifier(parts) if parts.first().is_some_and(|table| !names.iter().any(|name| name.eq_ignore_ascii_case(&table.value)))),
    )
}

/// The condition of a join.
fn constraint_mut(join: &mut Join) -> Option<&mut Expr> {
    match &mut join.join_operator {
        JoinOperator::Join(JoinConstraint::On(on))
        | JoinOperator::Inner(JoinConstraint::On(on))
        | JoinOperator::Left(JoinConstraint::On(on))
        | JoinOperator::LeftOuter(JoinConstraint::On(on)) => Some(on),
        _ => None,
    }
}

impl Plain {
    /// `unique(x)` is `count(DISTINCT x)`; rounding takes the rule's mode where a call names none.
    fn function(&self, function: &mut Function) {
        let Some(name) = single_name(&function.name) else { return };
        let FunctionArguments::List(list) = &mut function.args else { return };
        let text = |text: &str| {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(Value::SingleQuotedString(text.to_owned()).with_empty_span())))
        };
        let number =
            |text: &str| FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(Value::Number(text.to_owned(), false).with_empty_span())));
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

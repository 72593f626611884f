//! Questions about the syntax tree.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, Join, JoinConstraint, JoinOperator, ObjectName,
    Query, Select, SetExpr, TableFactor, TableWithJoins, Value, Visit, Visitor,
};

/// Aggregate functions that rules have.
pub(crate) const AGGREGATES: [&str; 11] =
    ["sum", "count", "min", "max", "bool_and", "bool_or", "unique", "latest", "percentile", "weighted", "register_usage"];

/// A name of one word as it is looked up.
pub(crate) fn single_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(folded),
        _ => None,
    }
}

/// `NAME` of `earlier.NAME`.
pub(crate) fn earlier_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [schema, rule] if schema.as_ident().is_some_and(|ident| ident.value.eq_ignore_ascii_case("earlier")) => {
            rule.as_ident().map(|ident| ident.value.to_lowercase())
        }
        _ => None,
    }
}

/// An identifier without quotes is in small letters.
pub(crate) fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Name of the table and the name that its columns go by.
pub(crate) fn table_and_alias(factor: &TableFactor) -> Option<(String, Ident)> {
    let TableFactor::Table { name, alias, .. } = factor else { return None };
    let table = single_name(name).or_else(|| earlier_name(name).map(|rule| format!("earlier.{rule}")))?;
    let own = || name.0.last().and_then(|part| part.as_ident().cloned());
    Some((table, alias.as_ref().map(|alias| alias.name.clone()).or_else(own)?))
}

/// The name that the columns of a FROM item go by.
pub(crate) fn alias_of(factor: &TableFactor) -> Option<Ident> {
    match factor {
        TableFactor::Derived { alias, .. } => alias.as_ref().map(|alias| alias.name.clone()),
        other => table_and_alias(other).map(|(_, alias)| alias),
    }
}

/// The FROM items of a SELECT and what is joined to them.
pub(crate) fn relations(select: &Select) -> impl Iterator<Item = &TableFactor> {
    select.from.iter().flat_map(relations_of)
}

/// A FROM item and what is joined to it.
pub(crate) fn relations_of(item: &TableWithJoins) -> impl Iterator<Item = &TableFactor> {
    std::iter::once(&item.relation).chain(item.joins.iter().map(|join| &join.relation))
}

/// The names that columns of usage go by in this SELECT.
pub(crate) fn usage_aliases(select: &Select) -> Vec<Ident> {
    relations(select).filter_map(table_and_alias).filter(|(table, _)| table == "usage").map(|(_, alias)| alias).collect()
}

/// The condition of a join.
pub(crate) fn constraint_of(join: &Join) -> Option<&Expr> {
    match &join.join_operator {
        JoinOperator::Join(JoinConstraint::On(on))
        | JoinOperator::Inner(JoinConstraint::On(on))
        | JoinOperator::Left(JoinConstraint::On(on))
        | JoinOperator::LeftOuter(JoinConstraint::On(on))
        | JoinOperator::Semi(JoinConstraint::On(on))
        | JoinOperator::LeftSemi(JoinConstraint::On(on))
        | JoinOperator::Anti(JoinConstraint::On(on))
        | JoinOperator::LeftAnti(JoinConstraint::On(on)) => Some(on),
        _ => None,
    }
}

/// How a join is made, if by more than its kind.
pub(crate) fn join_constraint(join: &Join) -> Option<&JoinConstraint> {
    match &join.join_operator {
        JoinOperator::Join(constraint)
        | JoinOperator::Inner(constraint)
        | JoinOperator::Left(constraint)
        | JoinOperator::LeftOuter(constraint)
        | JoinOperator::Right(constraint)
        | JoinOperator::RightOuter(constraint)
        | JoinOperator::FullOuter(constraint)
        | JoinOperator::Semi(constraint)
        | JoinOperator::LeftSemi(constraint)
        | JoinOperator::Anti(constraint)
        | JoinOperator::LeftAnti(constraint) => Some(constraint),
        _ => None,
    }
}

/// Whether a join keeps rows of its left side without a match.
pub(crate) fn is_left_join(join: &Join) -> bool {
    matches!(join.join_operator, JoinOperator::Left(_) | JoinOperator::LeftOuter(_))
}

/// The conditions that AND joins.
pub(crate) fn conjuncts(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Nested(inner) => conjuncts(inner),
        Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
            let mut all = conjuncts(left);
            all.extend(conjuncts(right));
            all
        }
        other => vec![other],
    }
}

/// The expression without parentheses around it.
pub(crate) fn plain(expr: &Expr) -> &Expr {
    match expr {
        Expr::Nested(inner) => plain(inner),
        other => other,
    }
}

/// Whether the expression is `alias.column`, or the bare column.
pub(crate) fn is_column(expr: &Expr, alias: &Ident, column: &str) -> bool {
    match plain(expr) {
        Expr::CompoundIdentifier(parts) => is_column_of(expr, alias) && parts[1].value.eq_ignore_ascii_case(column),
        Expr::Identifier(name) => name.value.eq_ignore_ascii_case(column),
        _ => false,
    }
}

/// Whether the expression is a column of `alias`.
pub(crate) fn is_column_of(expr: &Expr, alias: &Ident) -> bool {
    let Expr::CompoundIdentifier(parts) = plain(expr) else { return false };
    parts.len() == 2 && parts[0].value.eq_ignore_ascii_case(&alias.value)
}

/// The last part of a column's name.
pub(crate) fn column_name(expr: &Expr) -> Option<&Ident> {
    match plain(expr) {
        Expr::Identifier(name) => Some(name),
        Expr::CompoundIdentifier(parts) => parts.last(),
        _ => None,
    }
}

/// Whether any part of the expression, subqueries included, satisfies `test`.
pub(crate) fn any(expr: &Expr, mut test: impl FnMut(&Expr) -> bool) -> bool {
    let mut found = false;
    let _: ControlFlow<()> = sqlparser::ast::visit_expressions(expr, |expr| {
        found |= test(expr);
        if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    found
}

/// Whether the expression names any column of `alias`.
pub(crate) fn mentions_table(expr: &Expr, alias: &Ident) -> bool {
    any(expr, |part| {
        let Expr::CompoundIdentifier(parts) = part else { return false };
        parts.first().is_some_and(|table| table.value.eq_ignore_ascii_case(&alias.value))
    })
}

/// Whether one of the conditions joined by AND is `alias.column = something else`.
pub(crate) fn equates(expr: &Expr, alias: &Ident, column: &str) -> bool {
    conjuncts(expr).into_iter().any(|condition| match condition {
        Expr::BinaryOp { left, op: BinaryOperator::Eq, right } => {
            let of_other = |expr: &Expr| !mentions_table(expr, alias);
            (is_column(left, alias, column) && of_other(right)) || (is_column(right, alias, column) && of_other(left))
        }
        _ => false,
    })
}

/// The name of a called function in small letters; `None` when it is qualified.
pub(crate) fn call_name(call: &Function) -> Option<String> {
    match call.name.0.as_slice() {
        [part] => part.as_ident().map(|ident| ident.value.to_lowercase()),
        _ => None,
    }
}

/// The arguments of a call that are expressions.
pub(crate) fn arguments(call: &Function) -> Vec<&Expr> {
    let FunctionArguments::List(list) = &call.args else { return Vec::new() };
    list.args
        .iter()
        .filter_map(|argument| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        })
        .collect()
}

/// Whether this is a call of an aggregate function that is no window function.
pub(crate) fn is_aggregate(expr: &Expr) -> bool {
    matches!(expr, Expr::Function(call) if call.over.is_none() && call_name(call).is_some_and(|name| AGGREGATES.contains(&name.as_str())))
}

/// The text of a literal.
pub(crate) fn text_literal(expr: &Expr) -> Option<&str> {
    match plain(expr) {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// The digits of a literal number.
pub(crate) fn number_literal(expr: &Expr) -> Option<&str> {
    match plain(expr) {
        Expr::Value(value) => match &value.value {
            Value::Number(text, _) => Some(text),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the expression is NULL.
pub(crate) fn is_null_literal(expr: &Expr) -> bool {
    matches!(plain(expr), Expr::Value(value) if value.value == Value::Null)
}

/// The SELECTs of a query that UNION joins, from left to right.
pub(crate) fn selects(body: &SetExpr) -> Vec<&Select> {
    match body {
        SetExpr::Select(select) => vec![select],
        SetExpr::Query(query) => selects(&query.body),
        SetExpr::SetOperation { left, right, .. } => {
            let mut all = selects(left);
            all.extend(selects(right));
            all
        }
        _ => Vec::new(),
    }
}

/// Names of all tables that the query reads, its CTEs and subqueries included.
pub(crate) fn tables_in(query: &Query) -> BTreeSet<String> {
    let mut tables = BTreeSet::new();
    let _: ControlFlow<()> = sqlparser::ast::visit_relations(query, |name| {
        tables.extend(single_name(name));
        ControlFlow::Continue(())
    });
    tables
}

/// The CTEs of a query and of its subqueries by name.
pub(crate) fn ctes_in(query: &Query) -> Vec<(String, Query)> {
    struct Ctes(Vec<(String, Query)>);

    impl Visitor for Ctes {
        type Break = ();

        fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
            let ctes = query.with.iter().flat_map(|with| &with.cte_tables);
            self.0.extend(ctes.map(|cte| (folded(&cte.alias.name), cte.query.as_ref().clone())));
            ControlFlow::Continue(())
        }
    }

    let mut ctes = Ctes(Vec::new());
    let _ = query.visit(&mut ctes);
    ctes.0
}

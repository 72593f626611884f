//! Whether the returned columns tell charges apart: two charges of one identity stop the window.

use ratemill_schemas::decimal::DECIMAL;
use sqlparser::ast::{BinaryOperator, Expr, GroupByExpr, Ident, Query, Select, SelectItem, SetExpr};

use super::Reading;
use crate::rule::OutputColumn;
use crate::tree::{
    any, conjuncts, constraint_of, folded, is_aggregate, is_column, is_column_of, is_left_join, plain, selects, table_and_alias,
    text_literal, usage_aliases,
};

/// Columns that do not tell charges apart.
const VALUES: [&str; 5] = ["amount", "quantity", "unit", "unit_price", "detail"];

pub(super) fn check(written: &Query, output: &[OutputColumn], reading: &mut Reading<'_>) {
    if written.limit_clause.is_some() || written.fetch.is_some() {
        // How many rows are left is the author's word.
        return;
    }
    let arms = selects(&written.body);
    for select in &arms {
        if let Some(returned) = identity_of(select, output) {
            groups(select, &returned, reading);
        }
    }
    if let SetExpr::SetOperation { .. } = written.body.as_ref() {
        for (index, second) in arms.iter().enumerate() {
            if arms[..index].iter().any(|first| same_charges(first, second, output, reading)) {
                break;
            }
        }
    }
}

/// The expressions that tell the charges of a SELECT apart; `None` where it returns `*`.
fn identity_of<'a>(select: &'a Select, output: &[OutputColumn]) -> Option<Vec<&'a Expr>> {
    let mut returned = Vec::new();
    for (item, column) in select.projection.iter().zip(output) {
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { return None };
        if !VALUES.contains(&column.name.as_str()) && column.data_type != DECIMAL {
            returned.push(expr);
        }
    }
    Some(returned)
}

/// Whether the row of a LEFT JOIN is wanted that finds no usage: then no event is in it.
fn is_without(select: &Select, usage: &Ident) -> bool {
    let is_optional = select.from.iter().flat_map(|item| &item.joins).any(|join| {
        is_left_join(join) && table_and_alias(&join.relation).is_some_and(|(_, alias)| alias.value.eq_ignore_ascii_case(&usage.value))
    });
    // Every event has these.
    let is_missing = |condition: &Expr| match condition {
        Expr::IsNull(column) => {
            is_column_of(column, usage)
                && ["source", "id", "meter", "subject", "time", "quantity"].iter().any(|name| is_column(column, usage, name))
        }
        _ => false,
    };
    is_optional && select.selection.iter().flat_map(conjuncts).any(is_missing)
}

fn groups(select: &Select, returned: &[&Expr], reading: &mut Reading<'_>) {
    let mut usages = usage_aliases(select);
    usages.retain(|usage| !is_without(select, usage));
    let GroupByExpr::Expressions(keys, _) = &select.group_by else { return };
    let aggregates = select
        .projection
        .iter()
        .any(|item| matches!(item, SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } if any(expr, is_aggregate)));
    if keys.is_empty() {
        // Rows of usage as they are.
        let of_event = |expr: &&Expr| ["id", "time", "end"].iter().any(|column| usages.iter().any(|usage| mentions(expr, usage, column)));
        if !aggregates && !usages.is_empty() && select.distinct.is_none() && select.having.is_none() && !returned.iter().any(of_event) {
            let amount = select.projection.iter().find_map(|item| match item {
                SelectItem::ExprWithAlias { expr, alias } if folded(alias) == "amount" => Some(expr),
                _ => None,
            });
            let place = amount.and_then(|amount| reading.source.of(amount));
            let message = "every usage event becomes a charge, and two of them would be the same charge";
            reading.error("identity", place, message, "sum them: GROUP BY customer_id, currency; or return u.id as a column");
        }
        return;
    }
    let constant = returned.iter().all(|expr| matches!(plain(expr), Expr::Value(_)));
    for key in keys {
        let Some(usage) = usages.iter().find(|usage| is_column_of(key, usage)) else { continue };
        let is_subject = is_column(key, usage, "subject");
        // Several subjects can be of one contract, or of one customer, but none of none.
        let is_returned = returned.iter().any(|expr| any(expr, |part| part == key || names_same(part, key)));
        if is_returned || (is_subject && !constant) || is_fixed(key, select, returned) {
            continue;
        }
        let place = reading.source.of(key);
        let message = format!("grouped by `{key}`, which does not tell the charges apart");
        let help = "return it as a column, put it into item, or take it out of GROUP BY; unit and quantities do not tell charges apart";
        reading.error("identity-group", place, message, help);
    }
}

fn mentions(expr: &Expr, alias: &Ident, column: &str) -> bool {
    any(expr, |part| is_column(part, alias, column))
}

/// Whether `part` is the bare name of the column that `key` is.
fn names_same(part: &Expr, key: &Expr) -> bool {
    let (Expr::Identifier(name), Expr::CompoundIdentifier(parts)) = (part, plain(key)) else { return false };
    parts.last().is_some_and(|column| column.value.eq_ignore_ascii_case(&name.value))
}

/// Whether a condition gives the column one value, or that of a returned column.
fn is_fixed(key: &Expr, select: &Select, returned: &[&Expr]) -> bool {
    let joins = select.from.iter().flat_map(|item| &item.joins).filter_map(constraint_of);
    select.selection.iter().chain(joins).flat_map(|condition| conjuncts(condition)).any(|condition| {
        let Expr::BinaryOp { left, op: BinaryOperator::Eq, right } = condition else { return false };
        let other = if plain(left) == plain(key) {
            right
        } else if plain(right) == plain(key) {
            left
        } else {
            return false;
        };
        matches!(plain(other), Expr::Value(_)) || returned.iter().any(|expr| any(expr, |part| part == plain(other)))
    })
}

/// Whether two SELECTs of a UNION return the same identities: equal columns, and conditions that differ in usage alone.
fn same_charges(first: &Select, second: &Select, output: &[OutputColumn], reading: &mut Reading<'_>) -> bool {
    let (Some(ours), Some(theirs)) = (identity_of(first, output), identity_of(second, output)) else { return false };
    let usages = usage_aliases(second);
    if ours != theirs || usages.is_empty() || first.from != second.from || first.having.is_some() || second.having.is_some() {
        return false;
    }
    let conditions = |select: &Select| select.selection.iter().flat_map(conjuncts).cloned().collect::<Vec<Expr>>();
    let (mine, others) = (conditions(first), conditions(second));
    let differing =
        mine.iter().filter(|condition| !others.contains(condition)).chain(others.iter().filter(|condition| !mine.contains(condition)));
    let only_usage = differing.clone().all(|condition| match condition {
        Expr::BinaryOp { left, right, .. } => {
            [left, right].iter().all(|side| matches!(plain(side), Expr::Value(_)) || usages.iter().any(|usage| is_column_of(side, usage)))
        }
        _ => false,
    });
    if !only_usage {
        return false;
    }
    let literal = theirs.iter().find(|expr| text_literal(expr).is_some());
    let item = second.projection.iter().find_map(|item| match item {
        SelectItem::ExprWithAlias { expr, .. } if literal.is_some_and(|literal| std::ptr::eq(*literal, expr)) => Some(expr),
        _ => None,
    });
    let place = item.or(theirs.first().copied()).and_then(|expr| reading.source.of(expr));
    let message = "both SELECTs of the UNION return charges of the same customer and item";
    reading.error("identity-union", place, message, "give them different items, or sum them in one SELECT");
    true
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ratemill_schemas::UsageSchema;

    use crate::diagnostics::Diagnostics;
    use crate::project::RuleProject;
    use crate::reference::ReferenceData;

    async fn check(condition: &str, expected: &[&str]) {
        let rule = format!(
            "CREATE MATERIALIZED VIEW idle WITH (window = 'month', effective_from = '2026-01-01') AS
             SELECT 'house' AS customer_id, 'Idle' AS item, 30 AS amount, 'GBP' AS currency
             FROM billing_window w LEFT JOIN usage u ON u.time >= w.window_start WHERE {condition}"
        );
        let usage = Arc::new(UsageSchema::new(Vec::new()));
        let checked =
            RuleProject::check(vec![("idle.sql".to_owned(), rule)], ReferenceData::default(), usage, Diagnostics::default()).await;
        let found = checked.map_or_else(|errors| errors, |(_, warnings)| warnings);
        assert_eq!(found.0.iter().map(|found| found.code).collect::<Vec<_>>(), expected, "{condition}");
    }

    #[tokio::test]
    async fn a_row_without_usage_is_one_charge() {
        check("u.id IS NULL", &[]).await;
        check("(w.window_end IS NOT NULL) AND u.meter IS NULL", &[]).await;
        check("u.\"end\" IS NULL", &["identity"]).await;
        check("u.id IS NULL OR u.meter = 'x'", &["identity"]).await;
    }
}

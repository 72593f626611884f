//! How large the plan of a query gets, told from its tree.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use sqlparser::ast::{
    Cte, Expr, Function, GroupByExpr, Ident, OrderByKind, Query, Select, SelectItem, SelectItemQualifiedWildcardKind, SetExpr, Spanned,
    TableAlias, TableFactor, TableWithJoins, Visit, Visitor, WindowType,
};
use sqlparser::tokenizer::Span;

use super::{COLUMNS_MAX, Excess, STEPS_MAX, SUBQUERIES_MAX, TABLES_MAX, TERMS_MAX};
use crate::diagnostics::Place;

/// What part of a query amounts to.
#[derive(Debug, Clone, Default)]
struct Size {
    tables: usize,
    steps: usize,
    terms: usize,
    /// Subqueries in expressions of each other.
    subqueries: usize,
    /// The output columns with what they amount to in terms, where that is known.
    columns: Vec<(String, usize)>,
}

impl Size {
    /// Adds what is read beside it.
    fn add(&mut self, other: &Self) {
        self.tables = self.tables.saturating_add(other.tables);
        self.terms = self.terms.saturating_add(other.terms);
        self.steps = self.steps.max(other.steps);
        self.subqueries = self.subqueries.max(other.subqueries);
    }

    fn within_limits(self, span: Span) -> Result<Self, Excess> {
        let (message, help) = if self.tables > TABLES_MAX {
            let message =
                format!("{} tables are read, counting a CTE as often as it is read; a rule reads at most {TABLES_MAX}", self.tables);
            (message, "divide the rule: a rule can read the charges of another one")
        } else if self.steps > STEPS_MAX {
            let message = format!("too many joins, subqueries, window functions or CTEs build on each other here: at most {STEPS_MAX}");
            (message, "divide the rule: a rule can read the charges of another one")
        } else if self.subqueries > SUBQUERIES_MAX {
            let message = format!("{} subqueries stand in each other; at most {SUBQUERIES_MAX} may", self.subqueries);
            (message, "give the inner ones names as CTEs and join them")
        } else if self.terms > TERMS_MAX {
            let message = format!(
                "the expressions have {} terms when CTEs, coalesce and BETWEEN are written out; a rule has at most {TERMS_MAX}",
                self.terms
            );
            (message, "name a column in a condition once, not in a condition on a condition")
        } else {
            return Ok(self);
        };
        Err(Excess { place: Place::of(span), message, help })
    }
}

/// Refuses a list that is too long.
fn list(count: usize, span: Span) -> Result<(), Excess> {
    if count <= COLUMNS_MAX {
        return Ok(());
    }
    let message = format!("this list has {count} expressions; SELECT, GROUP BY, ORDER BY and PARTITION BY have at most {COLUMNS_MAX}");
    Err(Excess { place: Place::of(span), message, help: "divide the rule: a rule can read the charges of another one" })
}

pub(super) fn excess(query: &Query) -> Option<Excess> {
    Sizer::default().query(query).err()
}

/// What a name of FROM stands for.
#[derive(Debug)]
struct Source {
    name: String,
    columns: Vec<(String, usize)>,
}

#[derive(Debug, Default)]
struct Sizer {
    /// The CTEs in sight, the innermost last.
    ctes: Vec<(String, Size)>,
    /// The FROM items in sight, the innermost SELECT last.
    scopes: Vec<Vec<Source>>,
}

impl Sizer {
    fn query(&mut self, query: &Query) -> Result<Size, Excess> {
        let known = self.ctes.len();
        for Cte { alias, query, .. } in query.with.iter().flat_map(|with| &with.cte_tables) {
            let mut size = self.query(query)?;
            rename(&mut size.columns, alias);
            self.ctes.push((word(&alias.name), size));
        }
        let size = self.body(&query.body).and_then(|mut size| {
            if let Some(OrderByKind::Expressions(columns)) = query.order_by.as_ref().map(|order_by| &order_by.kind) {
                list(columns.len(), columns.first().map_or(Span::empty(), |column| column.expr.span()))?;
            }
            let mut terms = Terms::new(self, false);
            let _ = query.order_by.visit(&mut terms);
            terms.put_into(&mut size)?;
            Ok(size)
        });
        self.ctes.truncate(known);
        size
    }

    fn body(&mut self, body: &SetExpr) -> Result<Size, Excess> {
        match body {
            SetExpr::Select(select) => self.select(select),
            SetExpr::Query(query) => self.query(query),
            SetExpr::SetOperation { left, right, .. } => {
                let mut size = self.body(left)?;
                let other = self.body(right)?;
                size.add(&other);
                size.steps += 1;
                for ((_, terms), (_, others)) in size.columns.iter_mut().zip(&other.columns) {
                    *terms = (*terms).max(*others);
                }
                size.within_limits(Span::empty())
            }
            SetExpr::Table(table) => Ok(table.table_name.as_ref().map_or_else(Size::default, |name| self.table(&name.to_lowercase()))),
            other => {
                let (mut size, mut terms) = (Size::default(), Terms::new(self, false));
                let _ = other.visit(&mut terms);
                terms.put_into(&mut size)?;
                Ok(size)
            }
        }
    }

    fn select(&mut self, select: &Select) -> Result<Size, Excess> {
        let place = select.select_token.0.span;
        list(select.projection.len(), place)?;
        if let GroupByExpr::Expressions(columns, _) = &select.group_by {
            list(columns.len(), columns.first().map_or(place, Expr::span))?;
        }
        let (mut size, mut sources) = (Size::default(), Vec::new());
        for item in &select.from {
            self.item(item, &mut size, &mut sources)?;
        }
        size.steps += sources.len().saturating_sub(1);
        self.scopes.push(sources);
        let columns = self.expressions(select, &mut size);
        self.scopes.pop();
        size.columns = columns?;
        size.within_limits(place)
    }

    fn item(&mut self, item: &TableWithJoins, size: &mut Size, sources: &mut Vec<Source>) -> Result<(), Excess> {
        self.factor(&item.relation, size, sources)?;
        item.joins.iter().try_for_each(|join| self.factor(&join.relation, size, sources))
    }

    fn factor(&mut self, factor: &TableFactor, size: &mut Size, sources: &mut Vec<Source>) -> Result<(), Excess> {
        let (read, alias, name) = match factor {
            TableFactor::Table { name, alias, .. } => {
                let table = name.0.last().and_then(|part| part.as_ident()).map(word).unwrap_or_default();
                (self.table(&table), alias, table)
            }
            TableFactor::Derived { subquery, alias, .. } => {
                let mut read = self.query(subquery)?;
                read.steps += 1;
                (read, alias, String::new())
            }
            TableFactor::NestedJoin { table_with_joins, .. } => return self.item(table_with_joins, size, sources),
            _ => (Size { tables: 1, ..Size::default() }, &None, String::new()),
        };
        size.add(&read);
        let mut columns = read.columns;
        let name = alias.as_ref().map_or(name, |alias| {
            rename(&mut columns, alias);
            word(&alias.name)
        });
        sources.push(Source { name, columns });
        Ok(())
    }

    fn table(&self, name: &str) -> Size {
        match self.ctes.iter().rev().find(|(known, _)| known == name) {
            Some((_, size)) => Size { steps: size.steps + 1, ..size.clone() },
            None => Size { tables: 1, ..Size::default() },
        }
    }

    /// Adds the expressions of a SELECT; returns its columns.
    fn expressions(&mut self, select: &Select, size: &mut Size) -> Result<Vec<(String, usize)>, Excess> {
        let mut columns = Vec::new();
        for item in &select.projection {
            let name = match item {
                SelectItem::ExprWithAlias { alias, .. } => word(alias),
                SelectItem::UnnamedExpr(Expr::Identifier(name)) => word(name),
                SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(word).unwrap_or_default(),
                SelectItem::Wildcard(_) => {
                    columns.extend(self.scopes.iter().next_back().into_iter().flatten().flat_map(|source| source.columns.clone()));
                    continue;
                }
                SelectItem::QualifiedWildcard(SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
                    let name = name.to_string().to_lowercase();
                    let sources = self.scopes.iter().next_back().into_iter().flatten().filter(|source| source.name == name);
                    columns.extend(sources.flat_map(|source| source.columns.clone()));
                    continue;
                }
                _ => String::new(),
            };
            let mut terms = Terms::new(self, false);
            let _ = item.visit(&mut terms);
            columns.push((name, terms.put_into(size)?));
        }
        let mut terms = Terms::new(self, false);
        let _ = select.group_by.visit(&mut terms);
        let _ = select.named_window.visit(&mut terms);
        let _ = select.distinct.visit(&mut terms);
        terms.put_into(size)?;
        // Conditions are moved down to the tables, through the expressions on the way.
        let mut terms = Terms::new(self, true);
        let _ = select.selection.visit(&mut terms);
        let _ = select.having.visit(&mut terms);
        let _ = select.qualify.visit(&mut terms);
        for join in select.from.iter().flat_map(|item| &item.joins) {
            let _ = join.join_operator.visit(&mut terms);
        }
        terms.put_into(size)?;
        Ok(columns)
    }

    /// What a column amounts to when its expression is put in; 1 where it is a table's own.
    fn column(&self, source: Option<&str>, name: &str) -> usize {
        for scope in self.scopes.iter().rev() {
            let sources = scope.iter().filter(|known| source.is_none_or(|source| known.name == source));
            let columns = sources.flat_map(|source| &source.columns).filter(|(column, _)| column == name);
            if let Some(terms) = columns.map(|(_, terms)| *terms).max() {
                return terms;
            }
        }
        1
    }

    fn parts(&self, parts: &[Ident]) -> usize {
        match parts {
            [name] => self.column(None, &word(name)),
            [source, name, ..] => self.column(Some(&word(source)), &word(name)).max(self.column(None, &word(source))),
            [] => 1,
        }
    }
}

/// Columns get the names of `alias (a, b)`; each then counts as the largest, as `*` hides their order.
fn rename(columns: &mut Vec<(String, usize)>, alias: &TableAlias) {
    if !alias.columns.is_empty() {
        let most = columns.iter().map(|(_, terms)| *terms).max().unwrap_or(1);
        *columns = alias.columns.iter().map(|column| (word(&column.name), most)).collect();
    }
}

fn word(ident: &Ident) -> String {
    ident.value.to_lowercase()
}

/// Counts the terms of expressions; queries in them are counted on their own.
struct Terms<'a> {
    sizer: &'a mut Sizer,
    is_condition: bool,
    /// Around the node, as written and with the expressions of columns put in.
    around: Vec<(usize, usize)>,
    total: (usize, usize),
    queries: usize,
    found: Result<Size, Excess>,
    steps: usize,
}

impl<'a> Terms<'a> {
    fn new(sizer: &'a mut Sizer, is_condition: bool) -> Self {
        Self { sizer, is_condition, around: Vec::new(), total: (0, 0), queries: 0, found: Ok(Size::default()), steps: 0 }
    }

    /// Adds what was counted; returns what it amounts to with the expressions of columns put in.
    fn put_into(self, size: &mut Size) -> Result<usize, Excess> {
        let found = self.found?;
        size.add(&found);
        size.steps += self.steps;
        size.terms = size.terms.saturating_add(if self.is_condition { self.total.1 } else { self.total.0 });
        Ok(self.total.1.max(1))
    }
}

impl Visitor for Terms<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if self.queries == 0
            && let Ok(found) = &mut self.found
        {
            // It becomes a join.
            self.steps += 1;
            match self.sizer.query(query) {
                Ok(mut size) => {
                    size.subqueries += 1;
                    found.add(&size);
                }
                Err(excess) => self.found = Err(excess),
            }
        }
        self.queries += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.queries -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, _: &Expr) -> ControlFlow<()> {
        if self.queries == 0 {
            self.around.push((0, 0));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if self.queries > 0 {
            return ControlFlow::Continue(());
        }
        let (written, put_in) = self.around.pop().unwrap_or_default();
        let plus_one = (written.saturating_add(1), put_in.saturating_add(1));
        let (written, put_in) = match expr {
            Expr::Value(_) => (0, 0),
            Expr::Identifier(name) => (1, self.sizer.column(None, &word(name))),
            Expr::CompoundIdentifier(parts) => (1, self.sizer.parts(parts)),
            // The planner writes `low <= x AND x <= high`.
            Expr::Between { .. } => (plus_one.0.saturating_mul(2), plus_one.1.saturating_mul(2)),
            // Each of a list or struct is kept, and lists of lists grow.
            Expr::Array(_) | Expr::Tuple(_) | Expr::Struct { .. } | Expr::Map(_) | Expr::Dictionary(_) => (plus_one.1, plus_one.1),
            Expr::Function(function) => {
                if let Some(over) = &function.over {
                    self.steps += 1;
                    if let WindowType::WindowSpec(spec) = over
                        && let Err(excess) = list(spec.partition_by.len() + spec.order_by.len(), function.name.span())
                    {
                        self.found = Err(excess);
                    }
                }
                match kind(function) {
                    // No condition is moved through it.
                    Call::OverRows => (plus_one.0, 1),
                    // The planner writes `CASE WHEN x IS NOT NULL THEN x ELSE …`.
                    Call::Doubling => (plus_one.0.saturating_mul(2), plus_one.1.saturating_mul(2)),
                    Call::Plain => plus_one,
                }
            }
            _ => plus_one,
        };
        let total = self.around.last_mut().unwrap_or(&mut self.total);
        *total = (total.0.saturating_add(written), total.1.saturating_add(put_in));
        ControlFlow::Continue(())
    }
}

enum Call {
    Plain,
    OverRows,
    Doubling,
}

fn kind(function: &Function) -> Call {
    static AGGREGATES: OnceLock<HashSet<String>> = OnceLock::new();
    let aggregates = AGGREGATES.get_or_init(|| {
        let known = crate::functions::aggregate_functions();
        known.iter().map(|function| function.name().to_owned()).chain(["unique".to_owned()]).collect()
    });
    let name = function.name.to_string().to_lowercase();
    if function.over.is_some() || aggregates.contains(&name) {
        Call::OverRows
    } else if ["coalesce", "nvl", "nvl2", "ifnull"].contains(&name.as_str()) {
        Call::Doubling
    } else {
        Call::Plain
    }
}

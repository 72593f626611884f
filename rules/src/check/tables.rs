//! Every table that a query names is known, and named so that it can only be that one.

use std::ops::ControlFlow;

use ratemill_schemas::nearest::did_you_mean;
use sqlparser::ast::{Ident, ObjectName, Query, Spanned, TableFactor, Visit, Visitor};

use super::Reading;
use crate::diagnostics::Place;
use crate::tree::{earlier_name, folded, single_name};

/// Tables that every project has.
const OWN: [&str; 3] = ["usage", "billing_window", "opening"];

/// Tables of the ledger, which people expect to be there.
const LEDGER: [&str; 6] = ["charges", "ledger", "corrections", "invoices", "rejected", "current_charges"];

pub(super) fn check(query: &Query, reading: &mut Reading<'_>) {
    let _ = query.visit(&mut Tables { reading, scopes: Vec::new() });
}

struct Tables<'r, 'a> {
    reading: &'r mut Reading<'a>,
    /// The CTEs of the queries around.
    scopes: Vec<Vec<String>>,
}

impl Tables<'_, '_> {
    fn is_taken(&self, name: &str) -> bool {
        OWN.contains(&name) || self.reading.reference.table(name).is_some() || self.reading.rules.contains(name)
    }

    fn place(&self, factor: &impl Spanned) -> Option<Place> {
        self.reading.source.of_span(factor.span())
    }

    fn named(&mut self, name: &ObjectName) {
        let place = self.place(name);
        if earlier_name(name).is_some() {
            // Whether there is such a rule is asked with its options.
            return;
        }
        let Some(table) = single_name(name) else {
            let help = "a table is named by one word; charges of earlier windows are earlier.RULE";
            let parts: Vec<String> = name.0.iter().filter_map(|part| part.as_ident()).map(folded).collect();
            let message = format!("there is no table `{}`", parts.join("."));
            return self.reading.error("table-name", place, message, help);
        };
        if matches!(name.0.as_slice(), [part] if part.as_ident().is_some_and(|ident| ident.quote_style == Some('\''))) {
            let help = "a file becomes a table as reference/NAME.csv with its declaration reference/NAME.toml";
            let place = place.or_else(|| self.reading.source.quoted(&table));
            return self.reading.error("table-name", place, format!("a rule does not read the file '{table}'"), help);
        }
        if self.is_taken(&table) || self.scopes.iter().flatten().any(|known| *known == table) {
            return;
        }
        if LEDGER.contains(&table.as_str()) {
            let help = "read a rule's charges by the rule's name";
            let message = format!("rules do not read `{table}`: the ledger holds corrections beside charges");
            return self.reading.error("table-forbidden", place, message, help);
        }
        let ctes: Vec<String> = self.scopes.iter().flatten().cloned().collect();
        let known: Vec<&str> = OWN[..2]
            .iter()
            .copied()
            .chain(self.reading.reference.tables().map(|table| table.name()))
            .chain(self.reading.rules.iter().map(String::as_str))
            .chain(ctes.iter().map(String::as_str))
            .collect();
        let hint = did_you_mean(&table.to_lowercase(), known.iter().copied());
        let help = format!("tables are {}", known.join(", "));
        self.reading.error("table-unknown", place, format!("there is no table `{table}`{hint}"), &help);
    }

    fn shadowing(&mut self, name: &Ident) {
        let table = folded(name);
        if self.is_taken(&table) || table == "earlier" {
            let place = self.reading.source.of_span(name.span);
            self.reading.error("table-shadowed", place, format!("`{table}` is a table already"), "give the query another name");
        }
    }
}

impl Visitor for Tables<'_, '_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let mut names = Vec::new();
        for cte in query.with.iter().flat_map(|with| &with.cte_tables) {
            self.shadowing(&cte.alias.name);
            let name = folded(&cte.alias.name);
            if names.contains(&name) {
                let place = self.reading.source.of_span(cte.alias.name.span);
                self.reading.error("table-shadowed", place, format!("`{name}` is there twice"), "give one of the queries another name");
            }
            names.push(name);
        }
        self.scopes.push(names);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.scopes.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, alias, args, with_hints, sample, partitions, index_hints, json_path, with_ordinality, .. } => {
                if args.is_some() {
                    let help = "a list becomes rows by unnest(p.tiers) in the SELECT of a subquery; a calendar can be a reference table";
                    let place = self.place(name);
                    self.reading.error("table-function", place, "table functions are not allowed in rules", help);
                    return ControlFlow::Continue(());
                }
                if sample.is_some() {
                    let from = self.place(name);
                    let place = self.reading.source.words(from, &["TABLESAMPLE"]).map(|word| self.reading.source.with_parentheses(word));
                    self.reading.error("unsupported-from", place, "a sample is not the usage", "take TABLESAMPLE out");
                } else if !with_hints.is_empty()
                    || !partitions.is_empty()
                    || !index_hints.is_empty()
                    || json_path.is_some()
                    || *with_ordinality
                {
                    let place = self.place(name);
                    self.reading.error("unsupported-from", place, "table hints and partitions are not allowed in rules", "take them out");
                }
                self.named(name);
                if let Some(alias) = alias
                    && OWN.contains(&folded(&alias.name).as_str())
                    && single_name(name).is_none_or(|table| table != folded(&alias.name))
                {
                    self.shadowing(&alias.name);
                }
            }
            TableFactor::Derived { .. } => {}
            TableFactor::NestedJoin { .. } => {
                let place = self.place(factor);
                let place = place
                    .and_then(|place| self.reading.source.token_before(place.line, place.column))
                    .map_or(place, |(_, open)| Some(self.reading.source.with_parentheses(open)));
                self.reading.error(
                    "unsupported-from",
                    place,
                    "joins stand in parentheses",
                    "write the joins one after the other, without parentheses",
                );
            }
            TableFactor::UNNEST { .. } => {
                let place = self.place(factor);
                let place = place.map(|place| {
                    self.reading.source.words(None, &["UNNEST"]).map_or(place, |word| self.reading.source.with_parentheses(word))
                });
                self.reading.error(
                    "unsupported-from",
                    place,
                    "UNNEST does not stand in FROM here",
                    "write unnest(p.tiers) in the SELECT of a subquery",
                );
            }
            _ => {
                let place = self.place(factor);
                self.reading.error(
                    "unsupported-from",
                    place,
                    "this kind of FROM item is not allowed in rules",
                    "FROM takes tables, rules and subqueries",
                );
            }
        }
        ControlFlow::Continue(())
    }
}

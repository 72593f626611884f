//! How large a rule may be. Planning a query takes time and stack that grow faster than its text, and a CTE that is read
//! twice is planned twice: a page of SQL could keep a machine busy for a day. What is refused here is far beyond what
//! anyone writes by hand.

mod nesting;
mod size;

use sqlparser::ast::Query;

use crate::diagnostics::{Diagnostic, Place};
use crate::source::Source;

/// Longest rule, in bytes.
const TEXT_BYTES_MAX: usize = 128 * 1024;

/// Most operators of which one holds the other: `a + b + c` has two.
const NESTING_MAX: usize = 100;

/// Most CASTs, CASEs and the like in each other: when something in one is wrong, the parser reads all of it a second time
/// as something else.
const READ_TWICE_MAX: usize = 7;

/// Largest sum of the squares of the nesting of all expressions, the square being what one costs to plan.
const NESTING_SQUARES_MAX: usize = 200_000;

/// Most SELECTs that are written, subqueries and CTEs included: each is looked at in sight of all CTEs.
const SELECTS_MAX: usize = 150;

/// Most joins, subqueries, window functions, set operations and CTEs between the result and a table.
const STEPS_MAX: usize = 100;

/// Most subqueries in expressions of each other: each doubles the time to plan those in it.
const SUBQUERIES_MAX: usize = 8;

/// Most tables that are read, one that is read twice counting twice.
const TABLES_MAX: usize = 500;

/// Most expressions of a SELECT, a GROUP BY, an ORDER BY or a PARTITION BY.
const COLUMNS_MAX: usize = 500;

/// Most columns, calls and operators, with the expressions of CTEs put in where a condition uses them.
const TERMS_MAX: usize = 20_000;

/// What is too much, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excess {
    place: Option<Place>,
    message: String,
    help: &'static str,
}

impl Excess {
    fn diagnostic(self, file: &str, text: &str) -> Diagnostic {
        Diagnostic::error("too-large", file, text, self.place, self.message).help(self.help)
    }
}

/// Why this text is not even parsed.
pub(crate) fn text(file: &str, text: &str) -> Option<Diagnostic> {
    if text.len() > TEXT_BYTES_MAX {
        let message = format!("the file has {} bytes; a rule has at most {TEXT_BYTES_MAX}", text.len());
        // The text is not shown either.
        return Some(Diagnostic::error("too-large", file, "", None, message).help("keep prices and lists in reference tables"));
    }
    nesting::excess(text).map(|excess| excess.diagnostic(file, text))
}

/// Why this query is not planned.
pub(crate) fn query(query: &Query, source: &Source) -> Option<Diagnostic> {
    size::excess(query).map(|excess| excess.diagnostic(&source.file, &source.text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::diagnostics::Diagnostics;

    fn finding(select: &str) -> Option<String> {
        let sql = format!("CREATE MATERIALIZED VIEW r WITH (window = 'month', effective_from = '2026-01-01') AS {select}");
        let found = text("r.sql", &sql).or_else(|| {
            let mut diagnostics = Diagnostics::default();
            let source = Source::new("r.sql".to_owned(), sql);
            let parsed = crate::statement::parse(&source, &mut diagnostics).unwrap_or_else(|| panic!("{diagnostics}"));
            query(&parsed.query, &source)
        });
        found.map(|diagnostic| diagnostic.message)
    }

    fn repeated(count: usize, part: impl Fn(usize) -> String) -> String {
        (0..count).map(part).collect()
    }

    #[test]
    fn what_people_write_is_small() {
        assert_eq!(finding(&format!("SELECT a{} FROM usage", " + b".repeat(90))), None);
        assert_eq!(finding(&format!("SELECT a FROM usage WHERE x = 1{}", repeated(90, |n| format!(" OR y = {n} * 2")))), None);
        assert_eq!(finding(&format!("SELECT CASE{} END FROM usage", repeated(2000, |n| format!(" WHEN a > {n} THEN {n} + 1")))), None);
        assert_eq!(finding(&format!("SELECT a FROM usage WHERE b IN (0{})", repeated(5000, |n| format!(", {n}")))), None);
        assert_eq!(finding(&format!("SELECT 1{} FROM usage", repeated(400, |n| format!(", a + b AS c{n}")))), None);
        assert_eq!(finding(&format!("SELECT 1 FROM usage{}", repeated(60, |n| format!(" JOIN prices p{n} ON p{n}.a = usage.a")))), None);
        assert_eq!(finding(&vec!["SELECT a, b FROM usage JOIN prices ON x = y"; 90].join(" UNION ALL ")), None);
    }

    #[test]
    fn long_chains_are_refused_where_they_get_too_long() {
        let chain = |operator: &str| finding(&format!("SELECT 1 FROM usage WHERE a{}", format!(" {operator} b").repeat(300))).unwrap();
        for operator in ["+", "*", "||", "AND", "OR", "=", "IS NOT DISTINCT FROM"] {
            assert!(chain(operator).contains("at most 100"), "{operator}");
        }
        // Each parenthesis is short; together they are not.
        let nested = format!("SELECT {}a{} FROM usage", "(".repeat(11), format!("{})", " + 1".repeat(25)).repeat(11));
        assert!(finding(&nested).unwrap().contains("at most 100"));
        let many = repeated(40, |_| format!(", a{}", " + b".repeat(90)));
        assert!(finding(&format!("SELECT a{many} FROM usage")).unwrap().contains("in all"));
        let found = text("r.sql", &format!("SELECT 1\nFROM usage WHERE a{}", " + b".repeat(300))).unwrap();
        assert_eq!(found.place.map(|place| (place.line, place.column)), Some((2, 420)));
    }

    #[test]
    fn what_the_parser_reads_again_and_again_is_refused() {
        for call in ["CAST(", "CASE WHEN true THEN ", "NOT (", "substring(", "ARRAY[", "Position (", "ceil(1 + "] {
            assert!(finding(&format!("SELECT {}", call.repeat(30))).unwrap().contains("at most 7"), "{call}");
            assert_eq!(text("r.sql", &format!("SELECT {}", call.repeat(5))).map(|found| found.message), None);
        }
        assert_eq!(text("r.sql", &format!("SELECT {}", "round(".repeat(30))).map(|found| found.message), None);
    }

    #[test]
    fn long_lists_are_refused() {
        let list = repeated(600, |n| format!(", a + {n}"));
        for select in [
            format!("SELECT a{list} FROM usage"),
            format!("SELECT a FROM usage GROUP BY a{list}"),
            format!("SELECT a FROM usage ORDER BY a{list}"),
            format!("SELECT rank() OVER (PARTITION BY a{list}) FROM usage"),
            format!("SELECT a FROM usage WHERE EXISTS (SELECT a{list} FROM usage)"),
        ] {
            assert!(finding(&select).unwrap().contains("at most 500"));
        }
    }

    #[test]
    fn plans_that_outgrow_their_text_are_refused() {
        let chain = |count: usize, step: &dyn Fn(usize) -> String, rest: &str| {
            let ctes = repeated(count, |n| format!(", c{} AS ({})", n + 1, step(n)));
            finding(&format!("WITH c0 AS (SELECT a FROM usage){ctes} SELECT a FROM c{count} {rest}"))
        };
        let doubled = |n: usize| format!("SELECT a FROM c{n} UNION ALL SELECT a FROM c{n}");
        assert_eq!(chain(8, &doubled, ""), None);
        assert!(chain(9, &doubled, "").unwrap().starts_with("512 tables are read"));
        assert!(chain(60, &doubled, "").unwrap().contains("at most 500"));
        assert!(chain(120, &|n| format!("SELECT a FROM c{n}"), "").unwrap().contains("at most 100"));
        // Only a condition is moved through the CTEs, and an aggregate stops it.
        let ctes = repeated(200, |n| format!(", c{n} AS (SELECT a FROM usage)"));
        assert!(finding(&format!("WITH c AS (SELECT 1){ctes} SELECT a FROM c")).unwrap().contains("at most 150"));
        let squared = |n: usize| format!("SELECT a * a AS a FROM c{n}");
        assert_eq!(chain(40, &squared, ""), None);
        assert_eq!(chain(12, &squared, "WHERE a > 1"), None);
        assert!(chain(40, &squared, "WHERE a > 1").unwrap().contains("at most 20000"));
        assert_eq!(chain(40, &|n| format!("SELECT sum(a) + sum(a) AS a FROM c{n}"), "WHERE a > 1"), None);
        let lists = |n: usize| format!("SELECT [a, a] AS a FROM c{n}");
        assert!(chain(40, &lists, "").unwrap().contains("at most 20000"));
        let nested = |head: &str, tail: &str| finding(&format!("SELECT {}a{} FROM usage", head.repeat(14), tail.repeat(14)));
        assert!(nested("coalesce(", ", 1)").unwrap().contains("at most 20000"));
        assert!(nested("(", ") BETWEEN 1 AND 2").unwrap().contains("at most 20000"));
        assert_eq!(nested("abs(", ")"), None);
        let many = |part: &str| finding(&format!("SELECT 1 FROM usage WHERE 1 = greatest({})", vec![part; 120].join(", ")));
        assert!(many("(SELECT max(a) FROM usage)").unwrap().contains("at most 100"));
        assert_eq!(nested("(SELECT max(b) + ", " FROM usage)").map(|message| message.contains("at most 8")), Some(true));
        assert!(finding(&vec!["SELECT 1"; 120].join(" UNION ALL ")).unwrap().contains("at most 100"));
    }
}

//! The SQL that rules are written in: standard SQL with `FOR SYSTEM_TIME AS OF`.

use sqlparser::dialect::Dialect;

#[derive(Debug)]
pub(crate) struct RuleDialect;

impl Dialect for RuleDialect {
    fn is_identifier_start(&self, c: char) -> bool {
        c.is_alphabetic() || c == '_'
    }
    fn is_identifier_part(&self, c: char) -> bool {
        c.is_alphanumeric() || c == '_'
    }
    fn is_delimited_identifier_start(&self, c: char) -> bool {
        c == '"'
    }
    fn supports_table_versioning(&self) -> bool {
        true
    }
    fn supports_filter_during_aggregation(&self) -> bool {
        true
    }
    fn supports_group_by_expr(&self) -> bool {
        true
    }
    fn supports_window_clause_named_window_reference(&self) -> bool {
        true
    }
    fn supports_nested_comments(&self) -> bool {
        true
    }
}

//! The names of functions: which there are, and what to write for those that there are not.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use ratemill_schemas::nearest::did_you_mean;

use crate::functions::{aggregate_functions, documented, scalar_functions, window_functions};

/// What to say of a function's name.
pub(super) enum Advice {
    Known,
    /// Its value is another one tomorrow.
    Volatile,
    /// What to write instead.
    Instead(&'static str),
    /// The nearest name, as `; did you mean …?`, or nothing.
    Nearest(String),
}

const VOLATILE: [&str; 16] = [
    "now",
    "current_date",
    "current_timestamp",
    "current_time",
    "localtime",
    "localtimestamp",
    "today",
    "getdate",
    "sysdate",
    "random",
    "rand",
    "uuid",
    "gen_random_uuid",
    "newid",
    "clock_timestamp",
    "statement_timestamp",
];

/// Functions of other systems, and what a rule has for them.
const INSTEAD: [(&[&str], &str); 14] = [
    (&["avg", "mean"], "an average is sum(x) / count(x)"),
    (&["median", "approx_median"], "write percentile(x, 50)"),
    (&["approx_percentile_cont", "percentile_cont", "percentile_disc", "quantile"], "write percentile(x, 95): the exact nearest rank"),
    (&["approx_distinct", "count_distinct", "uniq"], "write unique(x)"),
    (&["date_bin", "time_slice", "tumble", "date_format"], "write time_bucket(instant, length, timezone)"),
    (&["trunc", "truncate"], "write round(x, places, 'down')"),
    (
        &[
            "power",
            "pow",
            "sqrt",
            "cbrt",
            "exp",
            "ln",
            "log",
            "log10",
            "log2",
            "stddev",
            "stddev_pop",
            "variance",
            "var_pop",
            "var_samp",
            "stddev_samp",
            "corr",
        ],
        "write the product out; roots and logarithms are not exact",
    ),
    (&["array_agg", "string_agg", "list", "group_concat", "listagg"], "tier_breakdown(…) and its like give a list for detail"),
    (&["datediff", "date_diff", "age"], "write days_between(from, to) for dates, seconds_between(from, to) for instants"),
    (&["dateadd", "date_add"], "write add_months(date, months) for dates"),
    (&["to_timestamp", "from_unixtime"], "declare the column as a timestamp, or write local_midnight(date, timezone)"),
    (&["first", "any_value", "arbitrary"], "take max(x), or add x to GROUP BY"),
    (&["if", "iif", "decode"], "write CASE WHEN … THEN … ELSE … END"),
    (&["ifnull", "isnull"], "write coalesce(x, 0)"),
];

pub(super) fn is_volatile(name: &str) -> bool {
    VOLATILE.iter().any(|known| known.eq_ignore_ascii_case(name))
}

pub(super) fn advice(name: &str) -> Advice {
    if known().contains(name) {
        return Advice::Known;
    }
    if is_volatile(name) {
        return Advice::Volatile;
    }
    if let Some((_, help)) = INSTEAD.iter().find(|(names, _)| names.contains(&name)) {
        return Advice::Instead(help);
    }
    Advice::Nearest(did_you_mean(name, documented()))
}

/// Every function that a rule can call.
fn known() -> &'static BTreeSet<String> {
    static KNOWN: OnceLock<BTreeSet<String>> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let mut names: BTreeSet<String> = ["ceil", "floor", "convert", "unique", "unnest"].map(str::to_owned).into();
        for function in scalar_functions() {
            names.extend(std::iter::once(function.name().to_owned()).chain(function.aliases().iter().cloned()));
        }
        for function in aggregate_functions() {
            names.extend(std::iter::once(function.name().to_owned()).chain(function.aliases().iter().cloned()));
        }
        for function in window_functions() {
            names.extend(std::iter::once(function.name().to_owned()).chain(function.aliases().iter().cloned()));
        }
        names
    })
}

//! Rules that are sound but for their size: chains, lists and nests of every part of the language.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

const OPTIONS: &str = "CREATE MATERIALIZED VIEW grown WITH (window = 'month', fan_out = 'allowed', effective_from = '2026-01-01') AS\n";

/// Where the large part goes.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Amount,
    Condition,
    Join,
    Group,
    Query,
}

use Slot::{Amount, Condition, Group, Join, Query};

/// What comes first, what is repeated (`@` is the number of the repetition), and what ends it.
const CHAINS: [(Slot, &str, &str, &str); 40] = [
    (Amount, "sum(u.quantity)", " + 1", ""),
    (Amount, "sum(u.quantity)", " * 1.5", ""),
    (Amount, "sum(u.quantity)", " / 3 - @", ""),
    (Amount, "sum(u.quantity", " + @", ")"),
    (Amount, "sum(octet_length(u.id", " || 'a'", "))"),
    (Amount, "sum(CASE", " WHEN u.quantity > @ THEN @", " ELSE 1 END)"),
    (Amount, "greatest(sum(u.quantity)", ", @", ")"),
    (Amount, "sum(u.quantity)", "::DECIMAL(38, 18)", ""),
    (Amount, "sum(u.quantity)", " + (SELECT max(x.quantity) FROM usage x WHERE x.meter = 'm@')", ""),
    (Amount, "count(*), 1 AS c", ", sum(u.quantity + @) AS c@", ""),
    (Amount, "count(*), 1 AS c", ", rank() OVER (PARTITION BY count(*) + @ ORDER BY u.subject) AS c@", ""),
    (Amount, "", "9", ""),
    (Amount, "0.", "9", ""),
    (Amount, "octet_length('", "x", "')"),
    (Amount, "u.", "x", ""),
    (Amount, "u", ".x", ""),
    (Amount, "u.attributes", "['a']", ""),
    (Amount, "count(*) --", "\n", ""),
    (Amount, "count(*) /*", "/* */", "*/"),
    (Condition, "u.meter = 'a'", " AND u.quantity > @", ""),
    (Condition, "u.meter = 'a'", " OR u.meter = 'm@'", ""),
    (Condition, "true", " AND (u.meter = 'm@' OR u.quantity > @)", ""),
    (Condition, "u.meter IN ('a'", ", 'm@'", ")"),
    (Condition, "u.quantity IN (1", ", u.quantity + @", ")"),
    (Condition, "true", " = true", ""),
    (Condition, "u.meter", " IS NULL", ""),
    (Condition, "u.time > u.time", " + INTERVAL '1 day'", ""),
    (Condition, "true", " AND EXISTS (SELECT 1 FROM usage x WHERE x.subject = u.subject AND x.meter = 'm@')", ""),
    (Condition, "true", " OR u.subject IN (SELECT x.subject FROM usage x WHERE x.meter = 'm@')", ""),
    (Condition, "u.meter LIKE '", "%a", "'"),
    (Condition, "u.meter ~ '", "(a{1000}){1000}", "'"),
    (Condition, "(1", ", 1", ") = (1, 2)"),
    (Join, "", " JOIN usage u@ ON u@.id = u.id", ""),
    (Join, "", " LEFT JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c@ ON c@.subject = u.subject", ""),
    (Join, "", " CROSS JOIN billing_window w@", ""),
    (Join, "", " CROSS JOIN LATERAL (SELECT max(x.quantity) AS q FROM usage x WHERE x.subject = u.subject) l@", ""),
    (Group, "", ", u.quantity + @", ""),
    (Group, ", ROLLUP (u.meter", ", u.quantity + @", ")"),
    (Query, "SELECT 'a' AS customer_id, 'b' AS item, 1 AS amount, 'EUR' AS currency", " UNION ALL SELECT 'a', 'b@', 1, 'EUR'", ""),
    (Query, "SELECT v.c AS customer_id, 'b' AS item, 1 AS amount, 'EUR' AS currency FROM (VALUES ('a')", ", ('c@')", ") AS v(c)"),
];

/// What is repeated before, what stands inside, and what is repeated after it.
const NESTS: [(Slot, &str, &str, &str); 20] = [
    (Amount, "(", "sum(u.quantity)", ")"),
    (Amount, "- ", "sum(u.quantity)", ""),
    (Amount, "coalesce(", "sum(u.quantity)", ", 1)"),
    (Amount, "nvl(", "sum(u.quantity)", ", 1)"),
    (Amount, "round(", "sum(u.quantity)", ", 2)"),
    (Amount, "CASE WHEN sum(u.quantity) > 1 THEN 2 ELSE ", "1", " END"),
    (Amount, "(SELECT count(*) + ", "1", " FROM usage)"),
    (Amount, "octet_length(replace(", "'a'", ", 'a', 'aaaaaaaaaaaaaaaa'))"),
    (Amount, "replace(", "'a'", ", 'a', 'aaaaaaaaaaaaaaaa')"),
    (Amount, "[", "1", "]"),
    (Amount, "CAST(", "sum(u.quantity)", " AS DECIMAL(38, 18))"),
    // Never closed: the parser looks for what else it could be.
    (Amount, "POSITION(", "sum(u.quantity)", ""),
    (Amount, "CASE WHEN true THEN ", "sum(u.quantity)", ""),
    (Condition, "NOT (", "true", ""),
    (Condition, "NOT ", "true", ""),
    (Condition, "(", "u.quantity > 1", ") BETWEEN false AND true"),
    (Condition, "(", "u.quantity > 1", ") IS NOT DISTINCT FROM true"),
    (Condition, "(", "u.quantity > 1", ") IN (true, u.quantity > 2)"),
    (Query, "SELECT * FROM (", "SELECT 'a' AS customer_id, 'b' AS item, 1 AS amount, 'EUR' AS currency", ") x"),
    (Query, "(", "SELECT 'a' AS customer_id, 'b' AS item, 1 AS amount, 'EUR' AS currency", ")"),
];

/// The columns `subject` and `quantity` out of `c@`, each step out of the one before.
const STEPS: [&str; 8] = [
    "SELECT * FROM c@",
    "SELECT subject, quantity * quantity AS quantity FROM c@",
    "SELECT subject, coalesce(quantity, 1) AS quantity FROM c@",
    "SELECT subject, sum(quantity) AS quantity FROM c@ GROUP BY subject",
    "SELECT * FROM c@ UNION ALL SELECT * FROM c@",
    "SELECT a.* FROM c@ a JOIN c@ b ON a.subject = b.subject",
    "SELECT subject || subject AS subject, quantity FROM c@",
    "SELECT concat(subject, subject) AS subject, quantity FROM c@ WHERE quantity > 1",
];

fn in_slot(slot: Slot, part: &str) -> String {
    let (amount, join, condition, group) = match slot {
        Amount => (part, "", "true", ""),
        Join => ("count(*)", part, "true", ""),
        Condition => ("count(*)", "", part, ""),
        Group => ("count(*)", "", "true", part),
        Query => return format!("{OPTIONS}{part}"),
    };
    format!(
        "{OPTIONS}SELECT u.subject AS customer_id, 'b' AS item, {amount} AS amount, 'EUR' AS currency\nFROM usage u{join}\nWHERE {condition}\nGROUP BY u.subject{group}"
    )
}

fn chain(shape: (Slot, &str, &str, &str), times: usize) -> String {
    let (slot, first, part, last) = shape;
    let parts: String = (0..times).map(|number| part.replace('@', &number.to_string())).collect();
    in_slot(slot, &format!("{first}{parts}{last}"))
}

fn nest(shape: (Slot, &str, &str, &str), times: usize) -> String {
    let (slot, before, inside, after) = shape;
    in_slot(slot, &format!("{}{inside}{}", before.repeat(times), after.repeat(times)))
}

fn steps(step: &str, times: usize, condition: &str) -> String {
    let ctes: String = (0..times).map(|number| format!(",\nc{} AS ({})", number + 1, step.replace('@', &number.to_string()))).collect();
    let select = "sum(u.quantity) AS amount, 'EUR' AS currency";
    format!(
        "{OPTIONS}WITH c0 AS (SELECT subject, quantity FROM usage){ctes}\nSELECT u.subject AS customer_id, 'b' AS item, {select} FROM c{times} u WHERE {condition} GROUP BY u.subject"
    )
}

/// A rule with one part of a random size.
pub fn grown(random: &mut StdRng) -> String {
    let bits = random.random_range(0..=12_u32);
    let times = random.random_range(1..=1_usize << bits);
    match random.random_range(0..4) {
        0 => nest(*NESTS.choose(random).unwrap(), times),
        1 => {
            let condition = ["true", "u.quantity > 1"].choose(random).unwrap();
            steps(STEPS.choose(random).unwrap(), times.min(200), condition)
        }
        _ => chain(*CHAINS.choose(random).unwrap(), times),
    }
}

/// Texts that broke the check or the evaluation: by their time, their memory, their stack, or a panic.
pub fn once_broken() -> Vec<(&'static str, String)> {
    let doubled_text = "SELECT subject || subject AS subject, quantity FROM c@";
    let from_window = "SELECT octet_length(u.s) AS amount, 'a' AS customer_id, 'b' AS item, 'EUR' AS currency FROM";
    let joined = (0..31).fold("(SELECT upper('aaaaaaaaaa') AS s FROM billing_window)".to_owned(), |inner, number| {
        if number < 20 { format!("(SELECT s || s AS s FROM {inner} q{number})") } else { inner }
    });
    let mut texts = vec![
        ("sum of 1000 terms", chain((Amount, "sum(u.quantity)", " + 1", ""), 1000)),
        ("sum of 99 terms", chain((Amount, "sum(u.quantity)", " + 1", ""), 99)),
        ("product of 99 factors", chain((Amount, "sum(u.quantity", " * 1.5", ")"), 99)),
        ("90 mixed operators", chain((Amount, "sum(u.quantity", " + 2 * @ - 1", ")"), 30)),
        ("1000 UNIONs", chain(CHAINS[38], 1000)),
        ("300 joins", chain((Join, "", " LEFT JOIN usage u@ ON u@.id = u.id", ""), 300)),
        ("90 joins", chain((Join, "", " JOIN usage u@ ON u@.id = u.id", ""), 90)),
        ("1000 subqueries", chain(CHAINS[27], 1000)),
        ("3500 sums", chain((Amount, "count(*), 1 AS c", ", sum(u.quantity + @) AS c@", ""), 3500)),
        ("1000 CTEs", steps("SELECT * FROM c@", 1000, "true")),
        ("CTE read twice, 20 times", steps("SELECT * FROM c@ UNION ALL SELECT * FROM c@", 20, "true")),
        ("condition on squares of squares", steps("SELECT subject, quantity * quantity AS quantity FROM c@", 20, "u.quantity > 1")),
        ("coalesce of coalesce", nest(NESTS[2], 20)),
        ("BETWEEN on BETWEEN", nest((Condition, "(", "u.quantity > 1", ") BETWEEN false AND true"), 20)),
        ("CAST that is not closed", nest((Amount, "CAST(", "1", ""), 24)),
        ("POSITION that is not closed", nest((Amount, "POSITION(", "1", ""), 16)),
        ("CASE in CASE, too deep", nest((Amount, "CASE WHEN true THEN ", "1", " END"), 60)),
        ("text that doubles", steps(doubled_text, 60, "true")),
        ("text that doubles in parts", format!("{OPTIONS}{from_window} {joined} u")),
        ("text that grows by replace", nest(NESTS[8], 9)),
        ("2000 wrong numbers", chain((Amount, "greatest(1", ", 1e400", ")"), 2000)),
    ];
    let options: String = (0..2000).map(|number| format!(", o{number} = 'a'")).collect();
    texts.push(("2000 wrong options", OPTIONS.replace(", fan_out", &format!("{options}, fan_out")) + "SELECT 1"));
    texts
}

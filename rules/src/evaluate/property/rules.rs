//! The rules of one case: one that is rated, and those that it reads.

use std::collections::BTreeSet;

use super::data::Setup;
use super::random::Random;
use super::relations::{Author, Relation, Tables};
use super::templates::TEMPLATES;

/// Rules and what is known of them.
pub(super) struct Rules {
    /// (file, text); the rated rule is called `rated`.
    pub(super) files: Vec<(String, String)>,
    pub(super) shapes: BTreeSet<&'static str>,
    /// Whether the query may be refused by lifting.
    pub(super) one_by_one: bool,
}

/// The contract of a billing period; other windows have none.
const CONTRACT: &str =
    "(SELECT max(z.contract_id) FROM billing_window y JOIN contracts FOR SYSTEM_TIME AS OF y.window_start AS z ON TRUE) AS contract_id, ";

pub(super) fn rules(setup: &Setup, random: &mut Random) -> Rules {
    if random.chance(25) { template(setup, random) } else { generated(setup, random) }
}

fn view(name: &str, calendar: &str, from: &str, options: &str, query: &str) -> (String, String) {
    (
        format!("{name}.sql"),
        format!("CREATE MATERIALIZED VIEW {name}\nWITH ({calendar}, effective_from = '{from}'{options})\nAS\n{query}\n"),
    )
}

fn contract(setup: &Setup) -> &'static str {
    if setup.by_contract() { CONTRACT } else { "" }
}

/// A rule whose charges the rated one reads.
fn upstream(setup: &Setup, random: &mut Random) -> (String, String) {
    let (inner, windows) = (setup.calendar.inner, random.below(4));
    let contract = if inner == super::data::BILLING_PERIOD { CONTRACT } else { "" };
    let query = random.pick(&[
        "SELECT CONTRACT u.subject AS customer_id, u.meter AS item, sum(u.quantity) AS amount, 'EUR' AS currency FROM usage u \
            GROUP BY u.subject, u.meter",
        "SELECT CONTRACT x.customer_id, 'calls' AS item, coalesce(sum(u.quantity), 0) + 1 AS amount, 'EUR' AS currency \
            FROM customers x LEFT JOIN usage u ON u.subject = x.customer_id GROUP BY x.customer_id",
    ]);
    view("up", inner, &setup.before(i64::try_from(windows).unwrap()), ", fan_out = 'allowed'", &query.replace("CONTRACT ", contract))
}

fn template(setup: &Setup, random: &mut Random) -> Rules {
    let template = &TEMPLATES[random.below(TEMPLATES.len())];
    let query = template.query.replace("CONTRACT ", contract(setup));
    let mut files = vec![view("rated", setup.calendar.options, &setup.before(0), template.options, &query)];
    if template.query.contains(" up ") || template.query.contains("earlier.up ") {
        files.push(upstream(setup, random));
    }
    Rules { files, shapes: template.shapes.iter().copied().chain(of_windows(setup)).collect(), one_by_one: false }
}

fn of_windows(setup: &Setup) -> impl Iterator<Item = &'static str> {
    let options = setup.calendar.options;
    [(setup.by_contract(), "billing periods"), (options.contains("anchor"), "anchored periods"), (options.contains('/'), "local time")]
        .into_iter()
        .filter_map(|(is, name)| is.then_some(name))
}

fn generated(setup: &Setup, random: &mut Random) -> Rules {
    let mut options = ", fan_out = 'allowed'".to_owned();
    let (opening, upstream_is_read, history) = (random.chance(25), random.chance(20), random.below(100));
    let earlier = match history {
        0..=9 => Some("earlier.rated"),
        10..=24 => Some("earlier.up"),
        _ => None,
    };
    let keys = random.pick(&["subject, meter", "subject", "subject, region"]);
    let past = random.pick(&["1 window", "2 windows", "5 windows"]);
    let depth = random.below(4) + 1;
    let from = setup.before(0);
    let tables = Tables { by_contract: setup.by_contract(), opening, upstream: upstream_is_read, earlier };
    let mut author = Author::new(random, tables);
    let relation = author.relation(depth);
    let query = statement(&mut author, &relation, contract(setup));
    author.shapes.insert("projection");
    let with = if author.ctes.is_empty() { String::new() } else { format!("WITH {}\n", author.ctes.join(",\n     ")) };
    let query = with + &query;
    let (mut shapes, one_by_one) = (std::mem::take(&mut author.shapes), author.one_by_one);
    // What a rule promises to read must be read.
    if query.contains("FROM opening ") {
        options += &format!(", carry = '{keys}'");
    }
    if query.contains("FROM earlier.") {
        options += &format!(", history = '{past}'");
    }
    shapes.extend(of_windows(setup));
    let mut files = vec![view("rated", setup.calendar.options, &from, &options, &query)];
    if query.contains("FROM up ") || query.contains("FROM earlier.up ") {
        files.push(upstream(setup, random));
    }
    Rules { files, shapes, one_by_one }
}

/// Makes charges of a relation.
fn statement(author: &mut Author<'_>, relation: &Relation, contract: &str) -> String {
    let everything = &relation.sql;
    match author.random.below(8) {
        0 => {
            if relation.windowed {
                author.shapes.insert("global aggregate");
            }
            format!(
                "SELECT {contract}coalesce(max(a.k), 'all') AS customer_id, 'Total' AS item, coalesce(sum(a.q), 0) AS amount, 'EUR' \
                    AS currency, count(*) AS row_count, max(a.t) AS last_time FROM ({everything}) a"
            )
        }
        // Without DISTINCT, rows of one identity stop the window.
        1..=2 => format!(
            "SELECT {} {contract}coalesce(a.k, '-') AS customer_id, coalesce(a.m, '-') AS item, a.n AS amount, 'EUR' AS currency, \
                a.t AS at FROM ({everything}) a WHERE a.n IS NOT NULL",
            author.random.pick(&["DISTINCT", "DISTINCT", "ALL"])
        ),
        3 => {
            if relation.windowed {
                author.shapes.insert("union with a reference-only branch");
            }
            format!(
                "SELECT {contract}coalesce(a.k, '-') AS customer_id, coalesce(a.m, '-') AS item, coalesce(sum(a.q), 0) AS amount, \
                    'EUR' AS currency, count(*) AS row_count FROM ({everything}) a GROUP BY a.k, a.m UNION ALL \
                    SELECT {contract}x.customer_id, 'Credit of ' || x.customer_id, x.credit, 'EUR', x.grade FROM customers x \
                    WHERE x.credit IS NOT NULL"
            )
        }
        4 => {
            if relation.windowed {
                author.shapes.insert("reference LEFT JOIN usage");
            }
            format!(
                "SELECT {contract}x.customer_id, 'Fee' AS item, coalesce(x.credit, 0) + coalesce(sum(a.q), 0) AS amount, 'EUR' \
                    AS currency, count(a.k) AS row_count FROM customers x LEFT JOIN ({everything}) a ON a.k = x.customer_id \
                    GROUP BY x.customer_id, x.credit"
            )
        }
        _ => format!(
            "SELECT {contract}coalesce(a.k, '-') AS customer_id, coalesce(a.m, '-') AS item, coalesce(sum(a.q), 0) AS amount, 'EUR' \
                AS currency, count(*) AS row_count, sum(a.n) AS quantity, max(a.t) AS last_time FROM ({everything}) a GROUP BY a.k, a.m"
        ),
    }
}

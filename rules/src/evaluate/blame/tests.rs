//! Who is named, by the shape of the rule.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::time::Duration;

use arrow::array::{ArrayRef, Date32Array, Int64Array, TimestampMicrosecondArray};
use ratemill_schemas::time::{day_of, parse_instant};
use ratemill_schemas::{Decimal, EventHasher, UsageBatchBuilder, UsageEvent, UsageSchema};

use super::*;
use crate::diagnostics::Diagnostics;
use crate::evaluate::{Evaluator, Mode};
use crate::project::RuleProject;
use crate::reference::ReferenceData;
use crate::session::{SessionLimits, runtime};

const CONTRACTS: &str = "subject,customer_id,contract_id,plan,anchor_day,valid_from,valid_to
s1,acme,K1,std,5,2026-01-01,
s2,acme,K1,std,5,2026-01-01,
s3,birch,K2,big,7,2026-01-01,
s4,cedar,K3,std,9,2026-01-01,
s5,dora,K4,std,9,2026-01-01,
";

const CONTRACT_COLUMNS: &str = "key = ['subject']\n[columns]\nsubject = 'text'\ncustomer_id = 'text'\ncontract_id = 'text'\nplan = 'text'\n\
    anchor_day = 'integer'\nvalid_from = 'date'\nvalid_to = 'date?'\n";

const PLANS: &str = "plan,fee,minimum,days\nstd,20,10,31\nbig,50,10,0\n";

const JOINED: &str = "JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject";
const CHARGED: &str = "c.customer_id, c.contract_id, 'EUR' AS currency, 'Use' AS item";

/// Rates January, or the periods in it, by the last of `rules`; `usage` has lines of subject, day and quantity.
struct Rating<'a> {
    rules: &'a [(&'a str, &'a str, &'a str)],
    contracts: &'a str,
    usage: &'a str,
    limits: SessionLimits,
}

impl Rating<'_> {
    async fn error(&self) -> String {
        let mut by_mode = Vec::new();
        for mode in [Mode::Auto, Mode::OneByOne] {
            by_mode.push(self.error_in(mode).await);
        }
        // Of several rows that fail, either may be told.
        let names = |error: &String| error.split(": ").next().map(str::to_owned);
        assert_eq!(names(&by_mode[0]), names(&by_mode[1]));
        assert_eq!(kind(&by_mode[0]), kind(&by_mode[1]));
        by_mode.remove(0)
    }

    async fn error_in(&self, mode: Mode) -> String {
        let file = |name: &str, columns: &str, csv: &str| (name.to_owned(), columns.to_owned(), csv.to_owned());
        let plans = "key = ['plan']\n[columns]\nplan = 'text'\nfee = 'decimal'\nminimum = 'decimal'\ndays = 'integer'";
        let tags = "[columns]\nsubject = 'text'\ntag = 'text'";
        let files = vec![
            file("contracts", CONTRACT_COLUMNS, self.contracts),
            file("plans", plans, PLANS),
            file("tags", tags, "subject,tag\ns3,x\ns3,y\n"),
        ];
        let mut diagnostics = Diagnostics::default();
        let reference = ReferenceData::from_files(files, "project", &mut diagnostics);
        let rules = self.rules.iter().map(|(name, options, query)| {
            let window = if options.contains("window") { "" } else { "window = 'month', " };
            let options = if options.is_empty() { String::new() } else { format!("{options}, ") };
            let text = format!("CREATE MATERIALIZED VIEW {name} WITH ({window}{options}effective_from = '2026-01-01') AS {query}");
            (format!("rules/{name}.sql"), text)
        });
        let schema = Arc::new(UsageSchema::new(Vec::new()));
        let (project, _) = RuleProject::check(rules.collect(), reference, Arc::clone(&schema), diagnostics).await.unwrap();
        let usage = Arc::new(MemTable::try_new(Arc::clone(schema.stored()), vec![vec![self.events(&schema)]]).unwrap());
        let limits = self.limits.clone();
        let project = Arc::new(project);
        let evaluator = Evaluator::new(runtime(&limits).unwrap(), limits, Arc::clone(&project), usage).with_mode(mode);
        let rated = self.rules.last().unwrap().0;
        let rule = project.rules.iter().find(|rule| rule.name == rated).unwrap();
        let [from, to] = ["2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"].map(|instant| parse_instant(instant).unwrap());
        let windows = rule.windows_between(&project.reference, from, to).unwrap();
        evaluator.evaluate(rule, &windows).await.map(|_| ()).unwrap_err().to_string()
    }

    fn events(&self, schema: &UsageSchema) -> RecordBatch {
        let lines: Vec<Vec<&str>> = self.usage.lines().map(|line| line.split_whitespace().collect()).collect();
        let lines: Vec<&[&str]> = lines.iter().map(Vec::as_slice).filter(|line| !line.is_empty()).collect();
        let times: Vec<i64> = lines.iter().map(|line| parse_instant(&format!("2026-01-{}T00:00:00Z", line[1])).unwrap()).collect();
        let mut builder = UsageBatchBuilder::new(schema, EventHasher::new([1, 2]), i64::MAX, lines.len());
        for (number, (line, time)) in lines.iter().zip(&times).enumerate() {
            let event = UsageEvent {
                source: "src",
                id: &format!("e{number}"),
                meter: "calls",
                subject: line[0],
                time: *time,
                quantity: line[2].parse::<Decimal>().unwrap(),
                end: None,
                dimensions: &[],
                attributes: &[],
            };
            builder.append(&event).unwrap();
        }
        let (decoded, ..) = builder.finish().unwrap();
        let mut columns = decoded.columns().to_vec();
        columns.push(Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC")) as ArrayRef);
        columns.push(Arc::new(Int64Array::from_iter_values(0..i64::try_from(times.len()).unwrap())));
        columns.push(Arc::new(Date32Array::from_iter_values(times.iter().map(|time| day_of(*time)))));
        RecordBatch::try_new(Arc::clone(schema.stored()), columns).unwrap()
    }
}

/// Whom an error names after rule and window.
async fn blamed(rules: &[(&str, &str, &str)], usage: &str) -> String {
    let error = Rating { rules, contracts: CONTRACTS, usage, limits: SessionLimits::default() }.error().await;
    let (head, tail) = error.split_once("T00:00:00Z to 2026-0").unwrap();
    assert!(head.starts_with(&format!("rule `{}`, window 2026-0", rules.last().unwrap().0)), "{error}");
    tail.split_once('Z').unwrap().1.split_once(": ").unwrap().0.to_owned()
}

#[tokio::test]
async fn usage_names_customer_and_subject() {
    let query = format!("SELECT {CHARGED}, 1 / (sum(u.quantity) - 7) AS amount FROM usage u {JOINED} GROUP BY ALL");
    let usage = "s1 10 5\ns2 11 5\ns3 21 7\ns4 21 8";
    assert_eq!(blamed(&[("r", "", &query)], usage).await, ", customer `birch`, subject `s3`");
    // Two subjects of a customer that fail together only.
    let usage = "s1 10 5\ns2 11 2\ns3 21 5\ns4 21 8";
    assert_eq!(blamed(&[("r", "", &query)], usage).await, ", customer `acme`");
    // Whose the subject is, is not read: it is the customer itself.
    let own = "SELECT u.subject AS customer_id, 'Use' AS item, 'EUR' AS currency, 1 / (sum(u.quantity) - 7) AS amount \
        FROM usage u GROUP BY u.subject";
    assert_eq!(blamed(&[("r", "", own)], "s1 10 5\ns3 21 7").await, ", subject `s3`");
    // Nobody's usage.
    let left = format!(
        "SELECT coalesce(c.customer_id, 'none') AS customer_id, 'Use' AS item, 'EUR' AS currency, 1 / (sum(u.quantity) - 7) AS amount \
        FROM usage u LEFT {JOINED} GROUP BY 1"
    );
    assert_eq!(blamed(&[("r", "", &left)], "s1 10 5\ns9 21 7").await, ", subject `s9`");
}

#[tokio::test]
async fn of_several_the_first_that_fails_alone_is_named() {
    let query = format!("SELECT {CHARGED}, 1 / (sum(u.quantity) - 7) AS amount FROM usage u {JOINED} GROUP BY ALL");
    let all = "s1 10 7\ns3 21 7\ns4 21 7\ns5 21 7";
    assert_eq!(blamed(&[("r", "", &query)], all).await, ", customer `acme`, subject `s1`");
    let last = "s1 10 5\ns3 21 5\ns4 21 7\ns5 21 7";
    assert_eq!(blamed(&[("r", "", &query)], last).await, ", customer `cedar`, subject `s4`");
    let both_ends = "s1 10 7\ns3 21 5\ns4 21 5\ns5 21 7";
    assert_eq!(blamed(&[("r", "", &query)], both_ends).await, ", customer `acme`, subject `s1`");
}

#[tokio::test]
async fn a_rule_without_usage_names_the_customer() {
    let query = "SELECT c.customer_id, c.subject AS line, 'EUR' AS currency, 'Fee' AS item, prorate_days(10, 5, p.days) AS amount \
        FROM billing_window w CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c JOIN plans p ON p.plan = c.plan";
    let found = blamed(&[("r", "", query)], "s1 10 5").await;
    assert_eq!(found, ", customer `birch`");
}

#[tokio::test]
async fn a_customer_without_usage_is_named_where_usage_may_be_absent() {
    let query = "SELECT c.customer_id, c.contract_id, 'EUR' AS currency, 'Use' AS item, 10 / count(u.id) AS amount \
        FROM contracts FOR SYSTEM_TIME AS OF w.window_start AS c CROSS JOIN billing_window w \
        LEFT JOIN usage u ON u.subject = c.subject GROUP BY ALL";
    let query = query.replace(
        "FROM contracts FOR SYSTEM_TIME AS OF w.window_start AS c CROSS JOIN billing_window w",
        "FROM billing_window w JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON true",
    );
    let usage = "s1 10 5\ns2 10 5\ns4 10 5\ns5 10 5";
    assert_eq!(blamed(&[("r", "fan_out = 'allowed'", &query)], usage).await, ", customer `birch`");
    // And the price of a customer with usage.
    let query = query
        .replace("10 / count(u.id) AS amount", "count(u.id) / p.days AS amount")
        .replace(" GROUP BY", " JOIN plans p ON p.plan = c.plan GROUP BY")
        .replace("GROUP BY ALL", "GROUP BY c.customer_id, c.contract_id, p.days");
    let usage = "s1 10 5\ns3 10 5\ns4 10 5\ns5 10 5";
    assert_eq!(blamed(&[("r", "fan_out = 'allowed'", &query)], usage).await, ", customer `birch`");
}

#[tokio::test]
async fn a_rule_over_a_rule_never_names_another_customer() {
    let upstream = format!("SELECT {CHARGED}, sum(u.quantity) AS amount FROM usage u {JOINED} GROUP BY ALL");
    let over = "SELECT a.customer_id, a.currency, 'Over' AS item, 1 / (sum(a.amount) - 7) AS amount FROM a GROUP BY 1, 2";
    let rules = [("a", "", upstream.as_str()), ("r", "", over)];
    assert_eq!(blamed(&rules, "s1 10 5\ns2 11 5\ns3 21 7").await, ", customer `birch`");
    assert_eq!(blamed(&rules, "s1 10 5\ns2 11 2\ns3 21 5").await, ", customer `acme`");
    // What only all of them together do is nobody's.
    let share = "SELECT a.customer_id, a.currency, 'Share' AS item, a.amount / (sum(a.amount) OVER () - 12) AS amount FROM a";
    let rules = [("a", "", upstream.as_str()), ("r", "", share)];
    assert_eq!(blamed(&rules, "s1 10 5\ns3 21 7").await, "");
    // Each alone would fail for being alone.
    let others = "SELECT a.customer_id, a.currency, 'Share' AS item, 1 / (count(*) OVER () - 1) + 1 / (a.amount - 7) AS amount FROM a";
    let rules = [("a", "", upstream.as_str()), ("r", "", others)];
    assert_eq!(blamed(&rules, "s1 10 5\ns3 21 7\ns4 21 5\ns5 21 5").await, ", customer `birch`");
    let found = blamed(&rules, "s1 10 5\ns3 21 7\ns4 21 7\ns5 21 5").await;
    assert!(!found.contains("acme") && !found.contains("dora"), "{found}");
}

#[tokio::test]
async fn a_billing_period_names_its_contract() {
    let query = format!("SELECT {CHARGED}, 1 / (sum(u.quantity) - 7) AS amount FROM usage u {JOINED} GROUP BY ALL");
    let found = blamed(&[("r", "window = 'billing_period'", &query)], "s1 10 5\ns2 11 5\ns3 21 7").await;
    assert_eq!(found, ", contract `K2`, customer `birch`, subject `s3`");
    // An error of nobody's data.
    let query = format!(
        "SELECT {CHARGED}, sum(u.quantity) * (SELECT p.fee FROM plans p WHERE p.minimum = 10) AS amount FROM usage u {JOINED} GROUP BY ALL"
    );
    let found = blamed(&[("r", "window = 'billing_period'", &query)], "s1 10 5").await;
    assert_eq!(found, ", contract `K1`");
    // A charge that is wrong.
    let query = format!(
        "SELECT c.customer_id, 'x' AS contract_id, 'EUR' AS currency, 'Use' AS item, sum(u.quantity) AS amount FROM usage u {JOINED} GROUP BY 1"
    );
    let found = blamed(&[("r", "window = 'billing_period'", &query)], "s3 10 5").await;
    assert_eq!(found, ", contract `K2`, customer `birch`");
}

#[tokio::test]
async fn fan_out_names_whose_the_event_is() {
    let query = format!(
        "SELECT {CHARGED}, t.tag, sum(u.quantity) AS amount FROM usage u {JOINED} JOIN tags t ON t.subject = u.subject GROUP BY ALL"
    );
    let found = blamed(&[("r", "", &query)], "s1 10 5\ns3 21 7").await;
    assert_eq!(found, ", customer `birch`, subject `s3`");
    let found = blamed(&[("r", "window = 'billing_period'", &query)], "s1 10 5\ns3 21 7").await;
    assert_eq!(found, ", contract `K2`, customer `birch`, subject `s3`");
    // The query that looks for it fails.
    let query = query.replace("t.subject = u.subject", "t.subject = u.subject AND 1 / (u.quantity - 7) > 0");
    let found = blamed(&[("r", "", &query)], "s1 10 5\ns3 21 7").await;
    assert_eq!(found, ", customer `birch`, subject `s3`");
}

#[tokio::test]
async fn one_of_many_customers_is_found_in_few_runs() {
    let mut contracts = CONTRACTS.lines().next().unwrap().to_owned();
    let mut usage = String::new();
    for number in 0..2000 {
        write!(contracts, "\ns{number},c{number},K{number},std,1,2026-01-01,").unwrap();
        writeln!(usage, "s{number} 10 {}", if number == 1234 { 7 } else { 5 }).unwrap();
    }
    let query = format!("SELECT {CHARGED}, 1 / (sum(u.quantity) - 7) AS amount FROM usage u {JOINED} GROUP BY ALL");
    let rating = Rating { rules: &[("r", "", &query)], contracts: &contracts, usage: &usage, limits: SessionLimits::default() };
    let started = std::time::Instant::now();
    let error = rating.error_in(Mode::Auto).await;
    assert!(error.ends_with(", customer `c1234`, subject `s1234`: 1 / 0: division by zero"), "{error}");
    println!("{:?}", started.elapsed());
}

#[tokio::test]
async fn an_evaluation_that_takes_too_long_says_so() {
    let usage: String = (0..1000).map(|number| format!("s1 10 {number}\n")).collect();
    let upstream = "SELECT a.subject AS customer_id, 'EUR' AS currency, 'Use' AS item, sum(a.quantity * b.quantity * d.quantity) AS amount \
        FROM usage a JOIN usage b ON a.quantity <> b.quantity JOIN usage d ON d.quantity <> a.quantity GROUP BY 1";
    let over = "SELECT a.customer_id, a.currency, 'Over' AS item, sum(a.amount) AS amount FROM a GROUP BY 1, 2";
    let limits = SessionLimits { evaluation_max: Duration::from_millis(300), ..SessionLimits::default() };
    let rules = [("a", "fan_out = 'allowed'", upstream), ("r", "", over)];
    let rating = Rating { rules: &rules, contracts: CONTRACTS, usage: &usage, limits };
    let started = std::time::Instant::now();
    let error = rating.error_in(Mode::Auto).await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let expected = "rule `a`, window 2026-01-01T00:00:00Z to 2026-02-01T00:00:00Z: not rated within 300ms, ";
    assert!(error.starts_with(expected), "{error}");
}

#[tokio::test]
async fn a_charge_that_cannot_be_kept_names_its_customer() {
    let charged = |columns: &str| format!("SELECT c.customer_id, {columns} FROM usage u {JOINED} GROUP BY ALL");
    let currency = charged("CASE WHEN c.plan = 'big' THEN 'euro' ELSE 'EUR' END AS currency, 'x' AS item, sum(u.quantity) AS amount");
    assert_eq!(blamed(&[("r", "", &currency)], "s1 10 5\ns3 21 7").await, ", customer `birch`");
    let nobody =
        "SELECT c.contract_id, nullif(c.customer_id, 'birch') AS customer_id, 'EUR' AS currency, 'x' AS item, sum(u.quantity) AS amount";
    let nobody = format!("{nobody} FROM usage u {JOINED} GROUP BY ALL");
    assert_eq!(blamed(&[("r", "", &nobody)], "s1 10 5\ns3 21 7").await, ", contract `K2`");
}

#[test]
fn values_do_not_tell_errors_apart() {
    assert_eq!(kind("prorate_days: 10 × 5 ÷ 0 days"), kind("prorate_days: 1.5 × -7 ÷ 0 days"));
    assert_eq!(kind("`a-1` names no price"), kind("`b` names no price"));
    assert_ne!(kind("division by zero"), kind("`x` is no number"));
}

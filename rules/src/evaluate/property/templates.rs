//! Rules as people write them. `CONTRACT` stands for the contract of a billing period.

/// One query, the options that it needs and what it is made of.
pub(super) struct Template {
    pub(super) query: &'static str,
    pub(super) options: &'static str,
    pub(super) shapes: &'static [&'static str],
}

const fn template(shapes: &'static [&'static str], options: &'static str, query: &'static str) -> Template {
    Template { query, options, shapes }
}

const ALLOWED: &str = ", fan_out = 'allowed'";

pub(super) static TEMPLATES: [Template; 22] = [
    template(
        &["projection", "aggregate", "inner join"],
        "",
        "SELECT c.customer_id, c.contract_id, c.plan, 'Calls' AS item, sum(u.quantity) AS quantity,
                graduated(sum(u.quantity), p.tiers) AS amount, c.currency, p.valid_from AS priced_from
         FROM usage u
         JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
         JOIN prices FOR SYSTEM_TIME AS OF u.time AS p ON p.plan = c.plan AND p.item = u.meter
         WHERE u.meter = 'calls'
         GROUP BY c.customer_id, c.contract_id, c.plan, c.currency, p.tiers, p.valid_from",
    ),
    template(
        &["reference LEFT JOIN usage", "left join", "aggregate"],
        "",
        "SELECT c.customer_id, c.contract_id, c.subject, 'Base fee' AS item, c.currency,
                coalesce(c.monthly_fee, 0) + coalesce(sum(u.quantity), 0) AS amount, count(u.id) AS events
         FROM billing_window w
         JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON TRUE
         LEFT JOIN usage u ON u.subject = c.subject
         GROUP BY c.customer_id, c.contract_id, c.subject, c.monthly_fee, c.currency",
    ),
    template(
        &["reference LEFT JOIN usage", "left join", "aggregate"],
        "",
        "SELECT CONTRACT x.customer_id, 'Pool' AS item, coalesce(x.credit, 1) - coalesce(sum(u.quantity), 0) AS amount, 'EUR' AS currency,
                count(DISTINCT u.meter) AS meters, max(u.time) AS last_time
         FROM customers x
         LEFT JOIN usage u ON u.subject = x.customer_id AND u.meter IN ('calls', 'data')
         GROUP BY x.customer_id, x.credit",
    ),
    template(
        &["not exists"],
        ALLOWED,
        "SELECT CONTRACT x.customer_id, 'Idle' AS item, 5 AS amount, 'EUR' AS currency
         FROM customers x
         WHERE NOT EXISTS (SELECT 1 FROM usage u JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
                           WHERE c.customer_id = x.customer_id)",
    ),
    template(
        &["not exists", "reference LEFT JOIN usage"],
        "",
        "SELECT DISTINCT CONTRACT x.customer_id, 'Silent' AS item, coalesce(x.credit, 2) AS amount, 'USD' AS currency
         FROM customers x
         LEFT JOIN usage u ON u.subject = x.customer_id
         WHERE u.id IS NULL AND NOT EXISTS (SELECT 1 FROM usage v WHERE v.meter = 'room' AND v.quantity > 5)",
    ),
    template(
        &["sub-aggregate", "cte"],
        "",
        "WITH quarters AS (
             SELECT u.subject, time_bucket(u.time, '15 minutes') AS quarter, sum(u.quantity) AS kwh
             FROM usage u GROUP BY u.subject, time_bucket(u.time, '15 minutes'))
         SELECT CONTRACT q.subject AS customer_id, 'Peak' AS item, max(q.kwh) * 4 AS amount, 'EUR' AS currency, count(*) AS quarters
         FROM quarters q GROUP BY q.subject",
    ),
    template(
        &["carry", "union"],
        ", carry = 'subject, meter'",
        "WITH readings AS (
             SELECT o.subject, o.meter, o.time, o.quantity FROM opening o
             UNION ALL
             SELECT u.subject, u.meter, u.time, u.quantity FROM usage u)
         SELECT CONTRACT r.subject AS customer_id, r.meter AS item, register_usage(r.quantity, r.time) AS amount, 'EUR' AS currency,
                count(*) AS readings
         FROM readings r GROUP BY r.subject, r.meter",
    ),
    template(
        &["carry", "full join"],
        ", fan_out = 'allowed', carry = 'subject'",
        "SELECT CONTRACT coalesce(o.subject, u.subject) AS customer_id, 'Since' AS item, coalesce(sum(u.quantity), 0) -
                coalesce(max(o.quantity), 0) AS amount,
                'EUR' AS currency, o.time AS opened, max(u.time) AS last_time
         FROM opening o FULL JOIN usage u ON u.subject = o.subject
         GROUP BY coalesce(o.subject, u.subject), o.time",
    ),
    template(
        &["carry", "union", "inner join"],
        ", fan_out = 'allowed', carry = 'subject, meter'",
        "WITH levels AS (
             SELECT o.subject, o.time, o.quantity FROM opening o WHERE o.meter = 'room'
             UNION ALL
             SELECT u.subject, u.time, u.quantity FROM usage u WHERE u.meter = 'room')
         SELECT CONTRACT l.subject AS customer_id, 'Storage' AS item, weighted(l.quantity, l.time, w.window_start,
                w.window_end) AS amount, 'EUR' AS currency
         FROM levels l CROSS JOIN billing_window w GROUP BY l.subject, w.window_start, w.window_end",
    ),
    template(
        &["earlier charges", "left join", "cte"],
        ", fan_out = 'allowed', history = '3 windows'",
        "WITH peaks AS (SELECT u.subject, max(u.quantity) AS peak FROM usage u GROUP BY u.subject)
         SELECT CONTRACT p.subject AS customer_id, 'Ratchet' AS item,
                greatest(p.peak, coalesce((SELECT max(e.amount) FROM earlier.rated e
                WHERE e.customer_id = p.subject), 0)) AS amount, 'EUR' AS currency
         FROM peaks p",
    ),
    template(
        &["earlier charges", "scalar subquery"],
        ", fan_out = 'allowed', history = '2 windows'",
        "SELECT CONTRACT x.customer_id, 'Rollover' AS item,
                coalesce((SELECT sum(e.amount) FROM earlier.up e WHERE e.customer_id = x.customer_id AND e.currency = 'EUR'), 0)
                    - coalesce((SELECT sum(u.quantity) FROM usage u WHERE u.subject = x.customer_id), 0) AS amount, 'EUR' AS currency
         FROM customers x",
    ),
    template(
        &["charges of another rule", "aggregate"],
        "",
        "SELECT CONTRACT r.customer_id, 'Minimum' AS item, at_least(sum(r.amount), 10) - sum(r.amount) AS amount,
                'EUR' AS currency, count(*) AS charges,
                max(r.window_end) AS until
         FROM up r WHERE r.currency = 'EUR' GROUP BY r.customer_id",
    ),
    template(
        &["charges of another rule", "reference LEFT JOIN usage"],
        ALLOWED,
        "SELECT CONTRACT x.customer_id, 'Commitment' AS item, overage(20, coalesce(sum(r.amount), 0)) AS amount, 'EUR' AS currency
         FROM customers x LEFT JOIN up r ON r.customer_id = x.customer_id AND r.currency = 'EUR' GROUP BY x.customer_id",
    ),
    template(
        &["unnest", "cte"],
        ALLOWED,
        "WITH totals AS (SELECT u.subject, u.meter, sum(u.quantity) AS quantity FROM usage u GROUP BY u.subject, u.meter),
              steps AS (SELECT t.subject, t.meter, unnest(tier_breakdown(t.quantity, p.tiers)) AS step
                        FROM totals t CROSS JOIN billing_window w
                        JOIN prices FOR SYSTEM_TIME AS OF w.window_start AS p ON p.item = t.meter AND p.plan = 'P2')
         SELECT CONTRACT s.subject AS customer_id, s.meter AS item, s.step['amount'] AS amount, 'EUR' AS currency,
                s.step['tier'] AS tier FROM steps s",
    ),
    template(
        &["global aggregate"],
        "",
        "SELECT CONTRACT 'all' AS customer_id, 'Total' AS item, coalesce(sum(u.quantity), 0) AS amount, 'EUR' AS currency,
                count(*) AS events,
                count(DISTINCT u.subject) AS subjects, count(*) FILTER (WHERE u.flag) AS flagged, latest(u.quantity, u.time) AS quantity,
                max(u.\"end\") AS last_end
         FROM usage u",
    ),
    template(
        &["global aggregate"],
        "",
        // A window without usage has nothing to divide by.
        "SELECT CONTRACT 'all' AS customer_id, 'Reciprocal' AS item, coalesce(sum(1 / coalesce(u.quantity + 2, 0)), 0) AS amount,
                'EUR' AS currency FROM usage u",
    ),
    template(
        &["inner join"],
        "",
        "SELECT CONTRACT u.subject AS customer_id, u.id AS item,
                seconds_between(u.time, least(coalesce(u.\"end\", u.time), w.window_end)) AS amount, 'EUR' AS currency
         FROM usage u CROSS JOIN billing_window w WHERE u.\"end\" IS NOT NULL",
    ),
    // Two labels of one subject stop the window.
    template(
        &["inner join"],
        "",
        "SELECT CONTRACT u.subject AS customer_id, u.id AS item, u.quantity * coalesce(l.weight, 1) AS amount, 'EUR' AS currency
         FROM usage u JOIN labels l ON l.subject = u.subject",
    ),
    // A quantity of 0 stops the window.
    template(
        &["projection"],
        "",
        "SELECT CONTRACT u.subject AS customer_id, u.source || u.id AS item, 1 / u.quantity AS amount, 'EUR' AS currency
                FROM usage u WHERE u.meter = 'room'",
    ),
    template(
        &["window function", "filter"],
        "",
        "SELECT CONTRACT r.subject AS customer_id, r.id AS item, greatest(r.running - 5, 0) -
                greatest(r.running - r.quantity - 5, 0) AS amount, 'EUR' AS currency,
                r.position AS position
         FROM (SELECT u.subject, u.id, u.quantity, sum(u.quantity) OVER (PARTITION BY u.subject ORDER BY u.time, u.id) AS running,
                      CAST(row_number() OVER (ORDER BY u.time, u.id) AS BIGINT) AS position
               FROM usage u) r
         WHERE r.running > 5",
    ),
    template(
        &["union with a reference-only branch", "union", "distinct"],
        "",
        "SELECT DISTINCT CONTRACT u.subject AS customer_id, u.meter AS item, 3 AS amount, 'EUR' AS currency FROM usage u
                WHERE u.region IS DISTINCT FROM 'eu'
         UNION ALL
         SELECT CONTRACT x.customer_id, 'Standing', x.credit, 'EUR' FROM customers x WHERE x.credit > 0",
    ),
    template(
        &["scalar subquery", "inner join", "having"],
        "",
        "SELECT CONTRACT u.subject AS customer_id, 'Share' AS item,
                sum(u.quantity) / (SELECT 1 + abs(coalesce(sum(v.quantity), 0)) FROM usage v) AS amount, 'EUR' AS currency
         FROM usage u GROUP BY u.subject HAVING count(*) >= (SELECT min(x.grade) FROM customers x)",
    ),
];

//! Queries that are made by chance. Each returns a text `k`, a text `m`, an instant `t`, a decimal `q` and a whole number
//! `n`, all of which may be null, so that every query can stand wherever another one can.

use std::collections::BTreeSet;

use super::random::Random;

/// A query and whether its rows depend on the window.
pub(super) struct Relation {
    pub(super) sql: String,
    pub(super) windowed: bool,
}

/// The windowed tables that a rule has beside usage.
#[derive(Default)]
pub(super) struct Tables {
    pub(super) by_contract: bool,
    pub(super) opening: bool,
    pub(super) upstream: bool,
    /// `earlier.NAME`, where there is one.
    pub(super) earlier: Option<&'static str>,
}

/// Makes queries, and keeps a list of what they are made of.
pub(super) struct Author<'a> {
    pub(super) random: &'a mut Random,
    pub(super) tables: Tables,
    pub(super) shapes: BTreeSet<&'static str>,
    /// Whether something was written that is only understood window by window.
    pub(super) one_by_one: bool,
    pub(super) ctes: Vec<String>,
    named: usize,
}

const EVERY_COLUMN: &str = "a.k, a.m, a.t, a.q, a.n";

impl<'a> Author<'a> {
    pub(super) fn new(random: &'a mut Random, tables: Tables) -> Self {
        Self { random, tables, shapes: BTreeSet::new(), one_by_one: false, ctes: Vec::new(), named: 0 }
    }

    fn shape(&mut self, name: &'static str) {
        self.shapes.insert(name);
    }

    /// A name that no other table has.
    fn name(&mut self) -> String {
        self.named += 1;
        format!("x{}", self.named)
    }

    pub(super) fn relation(&mut self, depth: usize) -> Relation {
        if depth == 0 {
            return self.table();
        }
        match self.random.below(25) {
            0 => self.table(),
            1..=5 => self.filter(depth),
            6..=8 => self.aggregate(depth),
            9 => self.global(depth),
            10 => self.sub_aggregate(depth),
            11..=14 => self.join(depth),
            15..=16 => self.set(depth),
            17..=18 => self.window_function(depth),
            19 => self.distinct(depth),
            20..=21 => self.scalar(depth),
            22 => self.cte(depth),
            23 => self.priced(depth),
            _ => self.rarely(depth),
        }
    }

    fn table(&mut self) -> Relation {
        match self.random.below(13) {
            0..=4 => self.usage(),
            5..=7 => self.reference(),
            8 => {
                let windowed = [
                    "SELECT 's1' AS k, 'calls' AS m, w.window_start AS t, CAST(1 AS DECIMAL(38, 18)) AS q, CAST(2 AS BIGINT) AS n \
                        FROM billing_window w",
                    "SELECT c.customer_id AS k, c.plan AS m, c.valid_from AS t, c.monthly_fee AS q, c.anchor_day AS n \
                        FROM contracts c, billing_window w WHERE c.valid_from < w.window_end \
                        AND (c.valid_to IS NULL OR c.valid_to > w.window_start)",
                    "SELECT c.subject AS k, c.currency AS m, c.valid_to AS t, c.monthly_fee AS q, c.anchor_day AS n \
                        FROM billing_window w JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON TRUE",
                ];
                Relation { sql: self.random.pick(&windowed).to_owned(), windowed: true }
            }
            9..=10 if self.tables.opening => {
                self.shape("carry");
                let sql = "SELECT o.subject AS k, o.meter AS m, o.time AS t, o.quantity AS q, o.tier AS n FROM opening o".to_owned();
                Relation { sql, windowed: true }
            }
            _ => match (self.tables.upstream, self.tables.earlier) {
                (upstream, Some(earlier)) if !upstream || self.random.chance(50) => {
                    self.shape("earlier charges");
                    self.charges(earlier)
                }
                (true, _) => {
                    self.shape("charges of another rule");
                    self.charges("up")
                }
                _ => self.usage(),
            },
        }
    }

    fn charges(&mut self, table: &str) -> Relation {
        let sql =
            format!("SELECT r.customer_id AS k, r.item AS m, r.window_end AS t, r.amount AS q, CAST(NULL AS BIGINT) AS n FROM {table} r");
        Relation { sql, windowed: true }
    }

    fn usage(&mut self) -> Relation {
        let mut sql = self
            .random
            .pick(&[
                "SELECT u.subject AS k, u.meter AS m, u.time AS t, u.quantity AS q, u.tier AS n FROM usage u",
                "SELECT u.region AS k, u.source AS m, u.\"end\" AS t, u.quantity AS q, CASE WHEN u.flag THEN u.tier ELSE 1 END AS n \
                FROM usage u",
                "SELECT c.customer_id AS k, u.meter AS m, u.time AS t, u.quantity * 2 AS q, c.anchor_day AS n FROM usage u \
                JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject",
                "SELECT u.subject AS k, c.plan AS m, u.time AS t, coalesce(c.monthly_fee, u.quantity) AS q, c.anchor_day AS n \
                FROM usage u LEFT JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject",
            ])
            .to_owned();
        if self.random.chance(40) {
            sql += &format!(" WHERE u.meter = '{}'", self.random.pick(&super::data::METERS));
        }
        Relation { sql, windowed: true }
    }

    fn reference(&mut self) -> Relation {
        let tables = [
            "SELECT x.customer_id AS k, x.region AS m, x.since AS t, x.credit AS q, x.grade AS n FROM customers x",
            "SELECT l.subject AS k, l.tag AS m, l.since AS t, l.weight AS q, l.grade AS n FROM labels l",
            "SELECT r.plan AS k, r.meter AS m, r.since AS t, r.price AS q, r.grade AS n FROM rates r \
                WHERE r.grade IS NOT NULL OR r.price > 0",
            "SELECT 's2' AS k, 'data' AS m, (SELECT max(x.since) FROM customers x) AS t, CAST(2.5 AS DECIMAL(38, 18)) AS q, CAST(7 \
                AS BIGINT) AS n",
            "SELECT c.subject AS k, c.plan AS m, c.valid_from AS t, c.monthly_fee AS q, c.anchor_day AS n FROM contracts c \
                WHERE c.valid_from <= (SELECT max(x.since) FROM customers x) \
                AND (c.valid_to IS NULL OR c.valid_to > (SELECT min(x.since) FROM customers x))",
        ];
        let index = self.random.below(tables.len());
        Relation { sql: tables[index].to_owned(), windowed: index == 4 && self.tables.by_contract }
    }

    /// A condition on the columns of `a`; whether it looks into a windowed table.
    fn condition(&mut self, depth: usize) -> (String, bool) {
        let plain = [
            "a.q > 2",
            "a.q IS NULL OR a.q < 8",
            "a.k IN ('s1', 's2', 'C1', 'eu')",
            "a.m IS NOT DISTINCT FROM 'calls'",
            "a.k LIKE 's%' AND a.n <> 2",
            "NOT (a.n = 1)",
            "coalesce(a.q, 0) + 1 > a.n",
            "a.m IS NOT NULL",
        ];
        if self.random.chance(30) {
            return (self.random.pick(&plain).to_owned(), false);
        }
        let other = self.shallower(depth);
        let (inner, windowed) = (&other.sql, other.windowed);
        let correlation = self
            .random
            .pick(&["b.k = a.k", "b.m = a.m AND b.n = a.n", "b.k = a.k AND b.q > a.q", "b.k IS NOT DISTINCT FROM a.k"])
            .to_owned();
        let sql = match self.random.below(13) {
            0..=1 => {
                self.shape("exists");
                format!("EXISTS (SELECT 1 FROM ({inner}) b WHERE {correlation})")
            }
            2..=3 => {
                self.shape("not exists");
                format!("NOT EXISTS (SELECT 1 FROM ({inner}) b WHERE {correlation})")
            }
            4..=5 => {
                self.shape("in");
                format!("a.k IN (SELECT b.k FROM ({inner}) b)")
            }
            6 => {
                self.shape("not in");
                self.one_by_one = true;
                format!("a.m NOT IN (SELECT b.m FROM ({inner}) b)")
            }
            7 => {
                self.shape("mark join");
                let not = self.random.pick(&["", "NOT "]);
                format!("(a.q > 5 OR {not}EXISTS (SELECT 1 FROM ({inner}) b WHERE {correlation}))")
            }
            8 => {
                self.shape("mark join");
                format!("(a.n IS NULL OR a.k IN (SELECT b.k FROM ({inner}) b))")
            }
            9 => {
                self.shape("correlated scalar subquery");
                format!("a.q >= (SELECT max(b.q) FROM ({inner}) b WHERE b.k = a.k)")
            }
            10 => {
                self.shape("correlated scalar subquery");
                format!("(SELECT count(*) FROM ({inner}) b WHERE b.k = a.k AND b.m = a.m) < 2")
            }
            11 => {
                self.shape("set comparison");
                format!("a.q {} (SELECT b.q FROM ({inner}) b)", self.random.pick(&["> ANY", ">= ALL", "< ALL"]))
            }
            _ => {
                self.shape("scalar subquery");
                format!("a.t >= (SELECT min(b.t) FROM ({inner}) b)")
            }
        };
        (sql, windowed)
    }

    fn filter(&mut self, depth: usize) -> Relation {
        self.shape("filter");
        let input = self.relation(depth - 1);
        let (condition, looks) = self.condition(depth);
        Relation { sql: format!("SELECT {EVERY_COLUMN} FROM ({}) a WHERE {condition}", input.sql), windowed: input.windowed || looks }
    }

    fn aggregate(&mut self, depth: usize) -> Relation {
        self.shape("aggregate");
        let input = self.relation(depth - 1);
        let (keys, columns) = *self.random.pick(&[
            &("a.k", "a.k, max(a.m) AS m, min(a.t) AS t"),
            &("a.m", "max(a.k) AS k, a.m, max(a.t) AS t"),
            &("a.k, a.m", "a.k, a.m, max(a.t) AS t"),
            &("a.n, a.t", "min(a.k) AS k, 'n' AS m, a.t"),
            &("'all' || 'in one'", "max(a.k) AS k, 'all' || 'in one' AS m, max(a.t) AS t"),
            &("a.k, time_bucket(a.t, 'day', 'Europe/London')", "a.k, max(a.m) AS m, time_bucket(a.t, 'day', 'Europe/London') AS t"),
        ]);
        let value = match self.random.below(6) {
            0 => {
                self.shape("aggregate filter");
                "sum(a.q) FILTER (WHERE a.m = 'calls' OR a.n > 1) AS q, count(*) FILTER (WHERE a.q > 1) AS n"
            }
            1 => {
                self.shape("aggregate distinct");
                "sum(a.q) AS q, count(DISTINCT a.m) AS n"
            }
            2 => {
                self.shape("aggregate distinct");
                "sum(DISTINCT a.q) AS q, unique(a.k) AS n"
            }
            3 => "max(a.q) - min(a.q) AS q, max(a.n) AS n",
            4 => "latest(a.q, a.t) AS q, count(a.n) AS n",
            _ => "coalesce(sum(a.q), 0) AS q, count(*) AS n",
        };
        let mut windowed = input.windowed;
        let having = match self.random.below(6) {
            0 => " HAVING count(*) > 1".to_owned(),
            1 => " HAVING sum(a.q) IS NOT NULL AND max(a.n) > 0".to_owned(),
            2 => {
                self.shape("scalar subquery in HAVING");
                let other = self.relation(0);
                windowed |= other.windowed;
                format!(" HAVING sum(a.q) > (SELECT min(b.q) FROM ({}) b)", other.sql)
            }
            _ => String::new(),
        };
        if !having.is_empty() {
            self.shape("having");
        }
        Relation { sql: format!("SELECT {columns}, {value} FROM ({}) a GROUP BY {keys}{having}", input.sql), windowed }
    }

    fn global(&mut self, depth: usize) -> Relation {
        let input = self.relation(depth - 1);
        if input.windowed {
            self.shape("global aggregate");
        }
        let columns = self.random.pick(&[
            "min(a.k) AS k, 'all' AS m, max(a.t) AS t, sum(a.q) AS q, count(*) AS n",
            "'all' AS k, max(a.m) AS m, max(a.t) AS t, coalesce(sum(a.q), 0) AS q, count(DISTINCT a.k) AS n",
            "'all' AS k, max(a.m) FILTER (WHERE a.n = 1) AS m, max(a.t) AS t, percentile(a.q, 90) AS q, count(a.q) AS n",
            // The quotient fails on a row that is made up of nulls.
            "'all' AS k, 'quotient' AS m, max(a.t) AS t, sum(6 / (coalesce(a.q, 0) + 2)) AS q, count(*) AS n",
            "'all' AS k, 'quotient' AS m, max(a.t) AS t, sum(6 / (CASE WHEN a.q IS NULL AND a.k IS NULL \
                AND a.t IS NULL THEN 0 ELSE 2 END)) AS q, count(*) AS n",
        ]);
        let having = self.random.pick(&["", "", "", " HAVING count(*) > 2", " HAVING count(*) = 0"]);
        Relation { sql: format!("SELECT {columns} FROM ({}) a{having}", input.sql), windowed: input.windowed }
    }

    fn sub_aggregate(&mut self, depth: usize) -> Relation {
        self.shape("sub-aggregate");
        let input = self.relation(depth - 1);
        let (outer, keys) = *self.random.pick(&[&("b.k", " GROUP BY b.k"), &("'all' AS k", "")]);
        Relation {
            sql: format!(
                "SELECT {outer}, max(b.m) AS m, max(b.t) AS t, max(b.q) AS q, count(*) AS n FROM (SELECT a.k, a.m, time_bucket(a.t, \
                    '15 minutes') AS t, sum(a.q) AS q FROM ({}) a GROUP BY a.k, a.m, time_bucket(a.t, '15 minutes')) b{keys}",
                input.sql
            ),
            windowed: input.windowed,
        }
    }

    fn join(&mut self, depth: usize) -> Relation {
        let (left, right) = (self.relation(depth - 1), self.shallower(depth));
        let on = self.random.pick(&[
            "a.k = b.k",
            "a.k = b.k",
            "a.m = b.m",
            "a.k = b.k AND a.m = b.m",
            "a.n = b.n AND a.m = 'calls'",
            "a.k IS NOT DISTINCT FROM b.k",
            "a.k = b.k AND a.t <= b.t",
            "a.q < b.q AND a.m = b.m",
            "a.k = b.k AND (a.n IS NULL OR b.n IS NULL OR a.n <> b.n)",
            "a.q = b.q AND a.n < 3 AND b.n < 3",
        ]);
        let windowed = left.windowed || right.windowed;
        let (kind, name) = *self.random.pick(&[
            &("JOIN", "inner join"),
            &("LEFT JOIN", "left join"),
            &("LEFT JOIN", "left join"),
            &("RIGHT JOIN", "right join"),
            &("FULL JOIN", "full join"),
            &("LEFT SEMI JOIN", "semi join"),
            &("LEFT ANTI JOIN", "anti join"),
        ]);
        self.shape(name);
        if (kind == "LEFT JOIN" && !left.windowed && right.windowed) || (kind == "RIGHT JOIN" && left.windowed && !right.windowed) {
            self.shape("reference LEFT JOIN usage");
        }
        let columns = match kind {
            "LEFT SEMI JOIN" | "LEFT ANTI JOIN" => EVERY_COLUMN,
            _ => "coalesce(a.k, b.k) AS k, b.m, a.t, coalesce(a.q, 0) - b.q AS q, coalesce(b.n, a.n) AS n",
        };
        let (left, right) = (left.sql, right.sql);
        let sql = match self.random.below(8) {
            0 => {
                self.shape("join using");
                let columns = if columns == EVERY_COLUMN { "k, m, a.t, a.q, a.n" } else { "k, m, b.t, a.q, b.n" };
                format!("SELECT {columns} FROM ({left}) a {kind} ({right}) b USING (k, m)")
            }
            1 if columns != EVERY_COLUMN => {
                format!("SELECT {columns} FROM ({left}) a {kind} ({right}) b ON {on} WHERE a.q IS NULL OR b.k IS NULL OR a.q >= b.q")
            }
            _ => format!("SELECT {columns} FROM ({left}) a {kind} ({right}) b ON {on}"),
        };
        Relation { sql, windowed }
    }

    /// The other side of a join is not always as deep.
    fn shallower(&mut self, depth: usize) -> Relation {
        let depth = self.random.below(depth);
        self.relation(depth)
    }

    fn set(&mut self, depth: usize) -> Relation {
        let (left, right) = (self.relation(depth - 1), self.shallower(depth));
        let kind = *self.random.pick(&[&"UNION ALL", &"UNION ALL", &"UNION ALL", &"UNION", &"INTERSECT", &"EXCEPT"]);
        self.shape("union");
        if left.windowed != right.windowed && kind.starts_with("UNION") {
            self.shape("union with a reference-only branch");
        }
        Relation { sql: format!("({}) {kind} ({})", left.sql, right.sql), windowed: left.windowed || right.windowed }
    }

    /// Every order is total or does not matter to its peers.
    fn window_function(&mut self, depth: usize) -> Relation {
        self.shape("window function");
        let input = self.relation(depth - 1);
        let everything = "ORDER BY a.t, a.q DESC, a.k, a.m, a.n";
        let partition = self.random.pick(&["PARTITION BY a.k ", "PARTITION BY a.m, a.n ", ""]);
        let columns = match self.random.below(7) {
            0 => format!("a.k, a.m, a.t, sum(a.q) OVER ({partition}ORDER BY a.t) AS q, a.n"),
            1 => format!("a.k, a.m, a.t, a.q, CAST(row_number() OVER ({partition}{everything}) AS BIGINT) AS n"),
            2 => format!("a.k, a.m, a.t, a.q - lag(a.q) OVER ({partition}{everything}) AS q, a.n"),
            3 => format!(
                "a.k, first_value(a.m) OVER ({partition}{everything}) AS m, lead(a.t) OVER ({partition}{everything}) AS t, a.q, a.n"
            ),
            4 => format!(
                "a.k, a.m, a.t, sum(a.q) OVER ({partition}{everything} ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS q, count(*) \
                    OVER ({partition}) AS n"
            ),
            5 => format!("a.k, a.m, a.t, max(a.q) OVER ({partition}) AS q, CAST(rank() OVER (ORDER BY a.q, a.k) AS BIGINT) AS n"),
            _ => {
                let sql = format!(
                    "SELECT {EVERY_COLUMN} FROM (SELECT a.*, row_number() OVER ({partition}{everything}) AS position \
                        FROM ({}) a) a WHERE a.position <= 2",
                    input.sql
                );
                return Relation { sql, windowed: input.windowed };
            }
        };
        Relation { sql: format!("SELECT {columns} FROM ({}) a", input.sql), windowed: input.windowed }
    }

    fn distinct(&mut self, depth: usize) -> Relation {
        self.shape("distinct");
        let input = self.relation(depth - 1);
        let columns = self
            .random
            .pick(&["a.k, a.m, a.t, a.q, a.n", "a.k, a.m, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS t, a.q, CAST(NULL AS BIGINT) AS n"]);
        Relation { sql: format!("SELECT DISTINCT {columns} FROM ({}) a", input.sql), windowed: input.windowed }
    }

    fn scalar(&mut self, depth: usize) -> Relation {
        let (input, other) = (self.relation(depth - 1), self.shallower(depth));
        let (outer, inner) = (&input.sql, &other.sql);
        let correlated = self.random.chance(60);
        self.shape(if correlated { "correlated scalar subquery" } else { "scalar subquery" });
        let of = if correlated {
            self.random.pick(&[
                "b.k = a.k",
                "b.k = a.k AND b.m = a.m",
                "b.n = a.n \
            AND b.q > 1",
            ])
        } else {
            "b.q > 1"
        };
        if correlated && self.random.chance(30) {
            self.shape("lateral subquery");
            let sql = format!(
                "SELECT a.k, a.m, a.t, b.q, a.n FROM ({outer}) a CROSS JOIN LATERAL (SELECT sum(b.q) AS q FROM ({inner}) b WHERE {of}) b"
            );
            return Relation { sql, windowed: input.windowed || other.windowed };
        }
        let columns = match self.random.below(6) {
            0 => format!("a.k, a.m, a.t, a.q, (SELECT count(*) FROM ({inner}) b WHERE {of}) AS n"),
            1 => format!("a.k, a.m, a.t, coalesce((SELECT sum(b.q) FROM ({inner}) b WHERE {of}), a.q) AS q, a.n"),
            2 => format!(
                "a.k, (SELECT max(b.m) FROM ({inner}) b WHERE {of}) AS m, a.t, a.q, 1 + (SELECT count(DISTINCT b.m) \
                    FROM ({inner}) b WHERE {of}) AS n"
            ),
            3 => "a.k, a.m, a.t, coalesce((SELECT x.credit FROM customers x WHERE x.customer_id = a.k), a.q) AS q, a.n".to_owned(),
            4 => format!(
                "a.k, a.m, a.t, (SELECT c.q FROM (SELECT b.k, max(b.q) AS q FROM ({inner}) b GROUP BY b.k) c WHERE c.k = a.k) AS q, a.n"
            ),
            _ => format!("a.k, a.m, (SELECT max(b.t) FROM ({inner}) b WHERE {of}) AS t, a.q, a.n"),
        };
        Relation { sql: format!("SELECT {columns} FROM ({outer}) a"), windowed: input.windowed || other.windowed }
    }

    /// A CTE that is read twice.
    fn cte(&mut self, depth: usize) -> Relation {
        self.shape("cte");
        let input = self.relation(depth - 1);
        let name = self.name();
        self.ctes.push(format!("{name} AS ({})", input.sql));
        let sql = self.random.pick(&[
            "SELECT a.k, a.m, a.t, a.q - coalesce(b.q, 0) AS q, a.n FROM NAME a LEFT JOIN (SELECT c.k, max(c.q) AS q \
                FROM NAME c GROUP BY c.k) b ON b.k = a.k",
            "SELECT a.k, a.m, a.t, a.q, a.n FROM NAME a WHERE a.q = (SELECT max(b.q) FROM NAME b WHERE b.m = a.m)",
            "SELECT * FROM NAME a UNION ALL SELECT 'again', b.m, b.t, b.q, b.n FROM NAME b WHERE b.n > 1",
        ]);
        Relation { sql: sql.replace("NAME", &name), windowed: input.windowed }
    }

    fn priced(&mut self, depth: usize) -> Relation {
        let input = self.relation(depth - 1);
        let sql = if self.random.chance(50) {
            self.shape("unnest");
            format!(
                "SELECT b.k, b.m, b.t, b.step['amount'] AS q, b.n FROM (SELECT a.k, a.m, a.t, a.n, unnest(tier_breakdown(a.q, \
                    p.tiers)) AS step FROM ({}) a JOIN prices FOR SYSTEM_TIME AS OF a.t AS p ON p.item = a.m AND p.plan = 'P1') b",
                input.sql
            )
        } else {
            format!(
                "SELECT a.k, a.m, a.t, graduated(a.q, p.tiers) AS q, a.n FROM ({}) a JOIN prices FOR SYSTEM_TIME AS OF a.t \
                    AS p ON p.item = a.m AND p.plan = 'P2'",
                input.sql
            )
        };
        Relation { sql, windowed: input.windowed }
    }

    /// What is understood window by window only.
    fn rarely(&mut self, depth: usize) -> Relation {
        let input = self.relation(depth - 1);
        self.one_by_one |= input.windowed;
        self.shape("one window at a time only");
        let sql = if self.random.chance(50) {
            format!("SELECT {EVERY_COLUMN} FROM ({}) a ORDER BY a.q, a.t, a.k, a.m, a.n LIMIT 3", input.sql)
        } else {
            format!("SELECT a.k, a.m, max(a.t) AS t, sum(a.q) AS q, count(*) AS n FROM ({}) a GROUP BY ROLLUP (a.k, a.m)", input.sql)
        };
        Relation { sql: format!("SELECT {EVERY_COLUMN} FROM ({sql}) a"), windowed: input.windowed }
    }
}

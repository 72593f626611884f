-- Demand by day part: for each calendar month the highest kW at the flat price, and for each day part the highest kW
-- inside it at its own price.
CREATE MATERIALIZED VIEW demand_windows
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH monthly AS (
    SELECT r.case_id, time_bucket(r.at, 'month', 'UTC') AS month, r.at, r.kw,
           CAST(weekday(local_date(r.at, 'UTC')) AS VARCHAR) AS weekday
    FROM readings r
),
peaks AS (
    SELECT m.case_id, m.month, 0 AS day_part, max(m.kw) AS kw
    FROM monthly m
    GROUP BY m.case_id, m.month
    UNION ALL
    SELECT m.case_id, m.month, d.position, max(m.kw)
    FROM monthly m
    JOIN day_parts d ON d.case_id = m.case_id
                    AND strpos(d.days, m.weekday) > 0
                    AND in_time_of_day(m.at, 'UTC', d.from_time, d.to_time)
    GROUP BY m.case_id, m.month, d.position
),
charged AS (
    SELECT k.case_id, sum(k.kw * coalesce(d.price_per_kw, t.flat_price_per_kw)) AS amount
    FROM peaks k
    JOIN tariff t ON t.case_id = k.case_id
    LEFT JOIN day_parts d ON d.case_id = k.case_id AND d.position = k.day_part
    GROUP BY k.case_id
)
SELECT t.case_id              AS customer_id,
       'total'                AS item,
       coalesce(c.amount, 0)  AS amount,
       'USD'                  AS currency
FROM tariff t
LEFT JOIN charged c ON c.case_id = t.case_id

-- Usage per monthly window in the customer's zone: events from the first instant of its first day up to that of the next window's.
-- A window without events counts as zero.
CREATE MATERIALIZED VIEW window_totals
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH months AS (
    SELECT c.case_id, c.timezone, coalesce(c.anchor_day, 1) AS anchor,
           unnest(period_starts(c.period_start, c.period_end, coalesce(c.anchor_day, 1))) AS first_day
    FROM contract c
),
month_totals AS (
    SELECT m.case_id, m.first_day, coalesce(sum(e.units), 0) AS units
    FROM months m
    LEFT JOIN events e ON e.case_id = m.case_id
                      AND e.at >= local_midnight(m.first_day, m.timezone)
                      AND e.at < local_midnight(add_months(m.first_day, 1, m.anchor), m.timezone)
    GROUP BY m.case_id, m.first_day
)
SELECT c.case_id                       AS customer_id,
       'total'                         AS item,
       0                               AS amount,
       'USD'                           AS currency,
       CAST(NULL AS VARCHAR)           AS name,
       CAST(NULL AS DECIMAL(38, 18))   AS totals
FROM contract c
UNION ALL
SELECT t.case_id, 'part', 0, 'USD', CAST(t.first_day AS VARCHAR), t.units
FROM month_totals t

-- Demand over a year with a look-back: each month bills its own peak, but at least a percentage of the highest peak
-- in the months named, or in the given number of months before it (January looks back into the year's own end).
CREATE MATERIALIZED VIEW demand_year
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH looked_back AS (
    SELECT m.case_id, m.month, max(e.kw) * b.lookback_percent / 100 AS least_kw
    FROM monthly_peaks m
    JOIN lookback b ON b.case_id = m.case_id
    JOIN monthly_peaks e ON e.case_id = m.case_id
    LEFT JOIN lookback_months n ON n.case_id = e.case_id AND n.month = e.month
    WHERE n.month IS NOT NULL OR (12 + m.month - e.month) % 12 BETWEEN 1 AND b.lookback_range
    GROUP BY m.case_id, m.month, b.lookback_percent
),
billed AS (
    SELECT m.case_id, m.month, at_least(m.kw, l.least_kw) AS kw, at_least(m.kw, l.least_kw) * p.price AS amount
    FROM monthly_peaks m
    JOIN monthly_prices p ON p.case_id = m.case_id AND p.month = m.month
    LEFT JOIN looked_back l ON l.case_id = m.case_id AND l.month = m.month
)
SELECT b.case_id                     AS customer_id,
       'total'                       AS item,
       sum(b.amount)                 AS amount,
       'USD'                         AS currency,
       CAST(NULL AS BIGINT)          AS position,
       CAST(NULL AS DECIMAL(38, 18)) AS billed_kw
FROM billed b
GROUP BY b.case_id
UNION ALL
SELECT b.case_id, 'part', b.amount, 'USD', b.month, b.kw
FROM billed b

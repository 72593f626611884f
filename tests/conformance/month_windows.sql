-- Starts of the monthly windows from the one that holds `from_date` up to, not including, `until_date`: the anchor day
-- of each month, cut to its length.
CREATE MATERIALIZED VIEW month_windows
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH monthly AS (
    SELECT c.case_id, unnest(period_starts(c.from_date, c.until_date, c.anchor_day)) AS window_date
    FROM contract c
)
SELECT c.case_id            AS customer_id,
       'total'              AS item,
       0                    AS amount,
       'USD'                AS currency,
       CAST(NULL AS BIGINT) AS position,
       CAST(NULL AS DATE)   AS starts
FROM contract c
UNION ALL
SELECT m.case_id, 'part', 0, 'USD', CAST(row_number() OVER (PARTITION BY m.case_id ORDER BY m.window_date) AS BIGINT), m.window_date
FROM monthly m

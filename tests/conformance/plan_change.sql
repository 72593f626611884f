-- A change of plan within the period: what is removed is credited and what is added is charged for the days left,
-- each item rounded to cents by itself.
--   line = round(price * days / days in the period, 2)
CREATE MATERIALIZED VIEW plan_change
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH items AS (
    SELECT case_id, 'removed' AS change, price FROM removed
    UNION ALL
    SELECT case_id, 'added' AS change, price FROM added
),
lines AS (
    SELECT p.case_id, i.change, round(prorate_days(i.price, p.days_left, p.days_in_period), 2, 'half_up') AS amount
    FROM period p
    LEFT JOIN items i ON i.case_id = p.case_id
),
netted AS (
    SELECT l.case_id,
           coalesce(sum(CASE WHEN l.change = 'added' THEN l.amount END), 0)   AS charge,
           coalesce(sum(CASE WHEN l.change = 'removed' THEN l.amount END), 0) AS given_back
    FROM lines l
    GROUP BY l.case_id
)
SELECT n.case_id                AS customer_id,
       'total'                  AS item,
       n.charge - n.given_back  AS amount,
       'USD'                    AS currency,
       n.charge                 AS charge,
       0 - n.given_back         AS credit
FROM netted n

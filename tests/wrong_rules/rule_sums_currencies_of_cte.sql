-- Pounds and euros in one sum: the CTE leaves the currency behind.
CREATE MATERIALIZED VIEW minimum
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
WITH charged AS (SELECT d.customer_id, d.amount FROM daily_pages d),
spent AS (SELECT g.customer_id, sum(g.amount) AS amount FROM charged g GROUP BY g.customer_id)
SELECT s.customer_id,
       'Minimum' AS item,
       overage(50, s.amount) AS amount,
       'GBP' AS currency
FROM spent s

-- A query that calls itself.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
WITH RECURSIVE months(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM months WHERE n < 12)
SELECT 'acme' AS customer_id, 'Month' AS item, count(*) AS amount, 'GBP' AS currency
FROM months

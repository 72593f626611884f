-- A table function makes rows.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT 'acme' AS customer_id,
       'Month' AS item,
       count(*) AS amount,
       'GBP' AS currency
FROM range(12) g

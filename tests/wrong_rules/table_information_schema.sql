-- The catalogue is no business of a rule.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT 'acme' AS customer_id,
       table_name AS item,
       1.00 AS amount,
       'GBP' AS currency
FROM information_schema.tables

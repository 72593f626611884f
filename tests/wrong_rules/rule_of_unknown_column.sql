-- A column that the other rule does not have.
CREATE MATERIALIZED VIEW minimum
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT d.customer_id,
       d.contract_id,
       'Minimum' AS item,
       sum(d.pages) AS amount,
       d.currency
FROM daily_pages d
GROUP BY d.customer_id, d.contract_id, d.currency

-- No window is no history.
CREATE MATERIALIZED VIEW minimum
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01', history = '0 windows')
AS
SELECT d.customer_id,
       d.contract_id,
       'Minimum' AS item,
       at_least(sum(d.amount), 20.00) - sum(d.amount) AS amount,
       d.currency
FROM earlier.daily_pages d
GROUP BY d.customer_id, d.contract_id, d.currency

-- The rule that is read begins later.
CREATE MATERIALIZED VIEW minimum
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2025-06-01')
AS
SELECT d.customer_id,
       d.contract_id,
       'Minimum' AS item,
       at_least(sum(d.amount), 20.00) - sum(d.amount) AS amount,
       d.currency
FROM daily_pages d
GROUP BY d.customer_id, d.contract_id, d.currency

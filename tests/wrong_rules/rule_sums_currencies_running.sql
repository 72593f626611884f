-- A running sum over the pounds and euros of a customer.
CREATE MATERIALIZED VIEW running
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT d.customer_id,
       'Pages so far' AS item,
       sum(d.amount) OVER (PARTITION BY d.customer_id ORDER BY d.window_start, d.contract_id, d.plan, d.currency) AS amount,
       d.currency,
       d.contract_id,
       d.plan,
       d.window_start AS day
FROM daily_pages d

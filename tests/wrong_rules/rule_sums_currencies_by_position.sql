-- Pounds and euros in one sum: a position is no currency.
CREATE MATERIALIZED VIEW minimum
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT d.customer_id,
       'Pages' AS item,
       0.1 * sum(d.amount) AS amount,
       max(d.currency) AS currency
FROM daily_pages d
GROUP BY 1

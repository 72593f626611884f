-- Pounds and euros in one sum: the currency is there, but not grouped by.
CREATE MATERIALIZED VIEW discount
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT x.customer_id,
       'Discount' AS item,
       -0.1 * sum(x.fee) AS amount,
       max(x.currency) AS currency
FROM (SELECT d.customer_id, d.currency, d.amount / 2 AS fee FROM daily_pages d WHERE d.quantity > 10) x
GROUP BY x.customer_id

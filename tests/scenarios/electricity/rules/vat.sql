CREATE MATERIALIZED VIEW vat
WITH (window = 'month', timezone = 'UTC', grace = '1 day', effective_from = '2040-09-01')
AS
SELECT e.customer_id, 'VAT' AS item, sum(e.amount) * 0.2 AS amount, e.currency
FROM energy e
GROUP BY e.customer_id, e.currency

CREATE MATERIALIZED VIEW level
WITH (window = 'month', timezone = 'UTC', grace = '1 day', carry = 'subject', effective_from = '2040-09-01')
AS
SELECT o.subject AS customer_id, 'Level' AS item, sum(o.quantity) AS quantity, sum(o.quantity) AS amount, 'EUR' AS currency
FROM opening o
WHERE o.meter = 'kwh'
GROUP BY o.subject

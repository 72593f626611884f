-- The row before, in no order.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT u.subject AS customer_id,
       u.id,
       'Pages' AS item,
       u.quantity - lag(u.quantity) OVER (PARTITION BY u.subject) AS amount,
       'GBP' AS currency
FROM usage u
WHERE u.meter = 'printed_page'

-- One customer and one item for all subjects.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT 'acme' AS customer_id,
       'Pages' AS item,
       sum(u.quantity) * 0.04 AS amount,
       'GBP' AS currency
FROM usage u
WHERE u.meter = 'printed_page'
GROUP BY u.subject

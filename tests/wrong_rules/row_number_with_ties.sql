-- Events of the same time in any order.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT r.customer_id, r.item, r.amount, r.currency, r.id
FROM (SELECT u.subject AS customer_id, 'Pages' AS item, u.quantity AS amount, 'GBP' AS currency, u.id,
             row_number() OVER (PARTITION BY u.subject ORDER BY u.time) AS n
      FROM usage u WHERE u.meter = 'printed_page') r
WHERE r.n <= 10

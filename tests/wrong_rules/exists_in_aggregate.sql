-- A condition on another table inside a sum.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       'Pages' AS item,
       sum(CASE WHEN EXISTS (SELECT 1 FROM prices p WHERE p.plan = c.plan) THEN u.quantity ELSE 0 END) AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.currency

-- As of, on the table that an outer join keeps.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       coalesce(sum(u.quantity), 0) * 0.04 AS amount,
       c.currency
FROM contracts FOR SYSTEM_TIME AS OF u.time AS c
LEFT JOIN usage u ON u.subject = c.subject AND u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency

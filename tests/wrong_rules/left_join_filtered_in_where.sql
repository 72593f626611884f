-- A condition in WHERE drops what the outer join keeps.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Pages' AS item,
       coalesce(sum(u.quantity), 0) * 0.04 AS amount,
       c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
LEFT JOIN usage u ON u.subject = c.subject
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.contract_id, c.currency

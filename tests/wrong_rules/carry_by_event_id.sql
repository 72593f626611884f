-- A key by which every event stays open for ever.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01', carry = 'source, id')
AS
SELECT c.customer_id,
       c.contract_id,
       'Store' AS item,
       sum(o.quantity) * 0.01 AS amount,
       c.currency
FROM opening o
JOIN billing_window w ON true
JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON c.subject = o.subject
WHERE o.meter = 'stored'
GROUP BY c.customer_id, c.contract_id, c.currency

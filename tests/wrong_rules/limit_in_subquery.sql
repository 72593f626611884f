-- Any one price.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       sum(u.quantity) * (SELECT q.seats FROM contracts q WHERE q.valid_from IS NULL OR q.valid_to IS NULL LIMIT 1) AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency

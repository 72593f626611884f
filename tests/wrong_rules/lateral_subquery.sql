-- LATERAL cannot be checked.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       graduated(sum(u.quantity), p.tiers) AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
CROSS JOIN LATERAL (SELECT q.tiers FROM prices q WHERE q.plan = c.plan AND q.item = 'page') AS p
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency, p.tiers

-- The quotient is rounded before it is multiplied.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       1/3 * 3.0 * sum(u.quantity) AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'page'
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency, p.tiers

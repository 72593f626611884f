-- The end of a validity is not part of it.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       graduated(sum(u.quantity), p.tiers) AS amount,
       c.currency
FROM usage u
JOIN contracts c ON c.valid_from <= u.time AND (c.valid_to IS NULL OR c.valid_to >= u.time) AND c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'page'
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency, p.tiers

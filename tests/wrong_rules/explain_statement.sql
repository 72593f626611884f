-- EXPLAIN ANALYZE around the query.
EXPLAIN ANALYZE
SELECT c.customer_id,
       c.plan,
       'Pages' AS item,
       graduated(sum(u.quantity), p.tiers) AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'page'
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.plan, c.currency, p.tiers

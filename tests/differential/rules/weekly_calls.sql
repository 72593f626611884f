-- Weeks of New York, across the change of clocks; graduated with flat fees.
CREATE MATERIALIZED VIEW weekly_calls
WITH (window = 'week', timezone = 'America/New_York', effective_from = '2026-02-02', effective_to = '2026-04-27')
AS
SELECT c.customer_id,
       c.plan,
       'Calls of the week'                  AS item,
       sum(u.quantity)                      AS quantity,
       graduated(sum(u.quantity), p.tiers)  AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'week'
WHERE u.meter = 'call'
GROUP BY c.customer_id, c.plan, c.currency, p.tiers

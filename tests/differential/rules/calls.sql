-- Volume tiers; months of New York.
CREATE MATERIALIZED VIEW calls
WITH (window = 'month', timezone = 'America/New_York', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       c.plan,
       'Calls'                           AS item,
       sum(u.quantity)                   AS quantity,
       volume(sum(u.quantity), p.tiers)  AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'call'
WHERE u.meter = 'call'
GROUP BY c.customer_id, c.plan, c.currency, p.tiers

-- Quarters of Kathmandu, 5:45 ahead of UTC.
CREATE MATERIALIZED VIEW quarter_volume
WITH (window = 'quarter', timezone = 'Asia/Kathmandu', effective_from = '2026-01-01', effective_to = '2026-07-01')
AS
SELECT c.customer_id,
       c.plan,
       'Storage of the quarter'          AS item,
       sum(u.quantity)                   AS quantity,
       volume(sum(u.quantity), p.tiers)  AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'quarter'
WHERE u.meter = 'storage'
GROUP BY c.customer_id, c.plan, c.currency, p.tiers

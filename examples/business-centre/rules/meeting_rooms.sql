-- Meeting rooms by the hour: beyond ten hours a month, every hour is cheaper.
CREATE MATERIALIZED VIEW meeting_rooms
WITH (window = 'month', timezone = 'Europe/London', grace = '1 day', effective_from = '2026-09-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Meeting room hours'              AS item,
       sum(u.quantity)                   AS quantity,
       'hour'                            AS unit,
       volume(sum(u.quantity), p.tiers)  AS amount,
       c.currency,
       c.plan
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'meeting_room'
WHERE u.meter = 'meeting_room'
GROUP BY c.customer_id, c.contract_id, c.currency, c.plan, p.tiers

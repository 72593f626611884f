-- Graduated tiers by the plan of the time of use.
CREATE MATERIALIZED VIEW storage
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       c.contract_id,
       c.plan,
       'Storage'                            AS item,
       sum(u.quantity)                      AS quantity,
       graduated(sum(u.quantity), p.tiers)  AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'storage'
WHERE u.meter = 'storage'
GROUP BY c.customer_id, c.contract_id, c.plan, c.currency, p.tiers

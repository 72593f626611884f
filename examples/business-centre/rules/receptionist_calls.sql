-- Calls that the virtual receptionist took: a number of them is in the contract, the rest is charged in tiers.
CREATE MATERIALIZED VIEW receptionist_calls
WITH (window = 'month', timezone = 'Europe/London', grace = '1 day', effective_from = '2026-09-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Receptionist calls'                 AS item,
       sum(u.quantity)                      AS quantity,
       'call'                               AS unit,
       graduated(sum(u.quantity), p.tiers)  AS amount,
       c.currency,
       c.plan
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'call'
WHERE u.meter = 'receptionist_call'
GROUP BY c.customer_id, c.contract_id, c.currency, c.plan, p.tiers

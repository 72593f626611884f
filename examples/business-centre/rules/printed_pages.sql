-- Printed pages above the number that the contract includes.
CREATE MATERIALIZED VIEW printed_pages
WITH (window = 'month', timezone = 'Europe/London', grace = '1 day', effective_from = '2026-09-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Printed pages'                      AS item,
       sum(u.quantity)                      AS quantity,
       'page'                               AS unit,
       graduated(sum(u.quantity), p.tiers)  AS amount,
       c.currency,
       c.plan
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'page'
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.contract_id, c.currency, c.plan, p.tiers

-- The anchor of a billing period stands in the contract.
CREATE MATERIALIZED VIEW pages
WITH (window = 'billing_period', effective_from = '2026-01-01', anchor = '15')
AS
SELECT c.customer_id,
       c.contract_id,
       'Pages' AS item,
       sum(u.quantity) * 0.04 AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'printed_page'
GROUP BY c.customer_id, c.contract_id, c.currency

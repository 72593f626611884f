CREATE MATERIALIZED VIEW calls
WITH (window = 'billing_period', grace = '2 days', effective_from = '2040-08-01')
AS
SELECT c.customer_id, c.contract_id, 'Calls' AS item, sum(u.quantity) AS quantity, sum(u.quantity) * 0.1 AS amount, c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'call'
GROUP BY c.customer_id, c.contract_id, c.currency

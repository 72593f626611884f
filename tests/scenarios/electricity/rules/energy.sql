CREATE MATERIALIZED VIEW energy
WITH (window = 'month', timezone = 'UTC', grace = '1 day', effective_from = '2040-09-01')
AS
SELECT c.customer_id, 'Energy' AS item, sum(u.quantity) AS quantity, 'kWh' AS unit,
       graduated(sum(u.quantity), p.tiers) AS amount, c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan
WHERE u.meter = 'kwh'
GROUP BY c.customer_id, c.currency, p.tiers

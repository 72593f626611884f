-- Data in gigabytes of 1000 megabytes, priced in tiers; all lines of a contract share them.
CREATE MATERIALIZED VIEW mobile_data
WITH (window = 'month', timezone = 'Europe/Madrid', grace = '3 days', effective_from = '2025-10-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Data'                                      AS item,
       sum(u.quantity) / 1000                      AS quantity,
       'GB'                                        AS unit,
       graduated(sum(u.quantity) / 1000, p.tiers)  AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN data_prices p ON p.plan = c.plan
WHERE u.meter = 'data'
GROUP BY c.customer_id, c.contract_id, c.currency, p.tiers

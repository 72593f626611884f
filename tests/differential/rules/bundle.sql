-- Storage is cheaper for subjects that also transfer, and free where they have sessions: IN and EXISTS.
CREATE MATERIALIZED VIEW bundle
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01', fan_out = 'allowed')
AS
SELECT c.customer_id,
       c.contract_id,
       'Bundled storage'        AS item,
       sum(u.quantity)          AS quantity,
       sum(u.quantity) * 0.017  AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'storage'
  AND u.subject IN (SELECT t.subject FROM usage t WHERE t.meter = 'transfer' AND t.region = 'eu')
  AND NOT EXISTS (SELECT 1 FROM usage s WHERE s.subject = u.subject AND s.meter = 'session')
GROUP BY c.customer_id, c.contract_id, c.currency

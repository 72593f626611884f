-- Bandwidth at its 95th percentile: what all projects of the contract sent in five minutes, as megabits per second; the
-- highest twentieth of these is free. Five minutes without any traffic do not count.
CREATE MATERIALIZED VIEW bandwidth
WITH (window = 'billing_period', grace = '6 hours', effective_from = '2025-01-01', fan_out = 'allowed')
AS
WITH five_minutes AS (
    SELECT c.customer_id, c.contract_id, c.plan, c.currency,
           time_bucket(u.time, '5 minutes')   AS bucket,
           sum(u.quantity) * 8000 / 300       AS mbit_s
    FROM usage u
    JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
    WHERE u.meter = 'egress_gb'
    GROUP BY c.customer_id, c.contract_id, c.plan, c.currency, time_bucket(u.time, '5 minutes')
)
SELECT f.customer_id,
       f.contract_id,
       'Bandwidth'                                      AS item,
       percentile(f.mbit_s, 95)                         AS quantity,
       'Mbit/s'                                         AS unit,
       graduated(percentile(f.mbit_s, 95), p.tiers)     AS amount,
       f.currency
FROM five_minutes f
JOIN prices p ON p.plan = f.plan AND p.item = 'bandwidth'
GROUP BY f.customer_id, f.contract_id, f.currency, p.tiers

-- Demand of business customers: the highest quarter of an hour of the month, all feeders together, in kilowatts.
-- Ratchet: at least 80 % of the highest demand that was measured in the eleven months before is charged, also in a
-- month without usage. The energy itself comes from another supplier.
CREATE MATERIALIZED VIEW demand
WITH (window = 'month', timezone = 'Europe/Berlin', grace = '2 days', effective_from = '2024-01-01',
      history = '11 windows', fan_out = 'allowed')
AS
WITH quarter_hours AS (
    SELECT u.subject, time_bucket(u.time, '15 minutes') AS quarter_hour, sum(u.quantity) * 4 AS kw
    FROM usage u
    WHERE u.meter = 'energy_15min'
    GROUP BY u.subject, time_bucket(u.time, '15 minutes')
),
peaks AS (
    SELECT q.subject, max(q.kw) AS kw FROM quarter_hours q GROUP BY q.subject
),
ratchets AS (
    SELECT e.contract_id, max(e.measured_kw) * 0.8 AS kw FROM earlier.demand e GROUP BY e.contract_id
)
SELECT c.customer_id,
       c.contract_id,
       'Demand'                                                          AS item,
       greatest(coalesce(p.kw, 0), coalesce(r.kw, 0))                    AS quantity,
       'kW'                                                              AS unit,
       t.kw_price                                                        AS unit_price,
       greatest(coalesce(p.kw, 0), coalesce(r.kw, 0)) * t.kw_price       AS amount,
       c.currency,
       coalesce(p.kw, 0)                                                 AS measured_kw
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
JOIN tariffs t       ON t.tariff = c.tariff AND t.kw_price IS NOT NULL
LEFT JOIN peaks p    ON p.subject = c.subject
LEFT JOIN ratchets r ON r.contract_id = c.contract_id

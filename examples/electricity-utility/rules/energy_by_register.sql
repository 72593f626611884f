-- Energy of old meters, which show a running total of five digits and are read now and then.
-- `opening` holds the last reading before the month, so consumption is counted from there; after 99999 the register
-- begins again at 0. What was used after the last reading of a month is charged with the next reading.
CREATE MATERIALIZED VIEW energy_by_register
WITH (window = 'month', timezone = 'Europe/Berlin', grace = '2 days', effective_from = '2024-03-01',
      carry = 'subject, meter', fan_out = 'allowed')
AS
WITH readings AS (
    SELECT o.subject, o.time, o.quantity FROM opening o WHERE o.meter = 'register'
    UNION ALL
    SELECT u.subject, u.time, u.quantity FROM usage u WHERE u.meter = 'register'
),
consumption AS (
    SELECT r.subject, register_usage(r.quantity, r.time, 100000) AS kwh
    FROM readings r
    GROUP BY r.subject
)
SELECT c.customer_id,
       c.contract_id,
       'Energy'                    AS item,
       k.kwh                       AS quantity,
       'kWh'                       AS unit,
       graduated(k.kwh, p.tiers)   AS amount,
       c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
JOIN register_prices p ON p.tariff = c.tariff
JOIN consumption k     ON k.subject = c.subject

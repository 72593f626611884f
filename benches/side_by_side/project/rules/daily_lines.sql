-- A line for each customer, meter and day: tiers on the quantity of the month up to that day, at the prices of that
-- day's plan, and for kilowatt-hours an adder by the hour. A change of plan within the month does not reset the quantity.
CREATE MATERIALIZED VIEW daily_lines
WITH (window = 'month', timezone = 'UTC', effective_from = '2026-10-01', fan_out = 'allowed', grace = '3 days')
AS
WITH banded AS (
    SELECT u.subject, u.meter, time_bucket(u.time, 'day', 'UTC') AS day, h.band,
           sum(u.quantity) AS quantity, count(*) AS events
    FROM usage u
    LEFT JOIN tou_hours h ON h.meter = u.meter AND h.hour = extract(hour FROM u.time)
    GROUP BY u.subject, u.meter, time_bucket(u.time, 'day', 'UTC'), h.band
),
days AS (
    SELECT b.subject, b.meter, b.day, c.plan, c.currency,
           sum(b.quantity) AS quantity, sum(b.events) AS events, sum(b.quantity * coalesce(r.adder, 0)) AS adders
    FROM banded b
    JOIN contracts FOR SYSTEM_TIME AS OF b.day AS c ON c.subject = b.subject
    LEFT JOIN tou_rates r ON r.plan = c.plan AND r.band = b.band
    GROUP BY b.subject, b.meter, b.day, c.plan, c.currency
),
running AS (
    SELECT d.*, sum(d.quantity) OVER (PARTITION BY d.subject, d.meter ORDER BY d.day ROWS UNBOUNDED PRECEDING) AS so_far
    FROM days d
)
SELECT m.subject                                                                                        AS customer_id,
       m.meter                                                                                          AS item,
       m.quantity,
       m.adders + graduated(m.so_far, p.tiers) - graduated(m.so_far - m.quantity, p.tiers)              AS amount,
       m.currency,
       m.day,
       m.plan,
       CAST(m.events AS DECIMAL(38, 18))                                                                AS events
FROM running m
JOIN prices p ON p.plan = m.plan AND p.meter = m.meter

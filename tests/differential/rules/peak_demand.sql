-- Demand: the largest sum of a quarter of an hour in the month, as power.
CREATE MATERIALIZED VIEW peak_demand
WITH (window = 'month', timezone = 'Europe/Berlin', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
WITH quarters AS (
    SELECT c.customer_id,
           c.currency,
           date_trunc('hour', u.time)                                             AS hour,
           date_part('minute', u.time) - date_part('minute', u.time) % 15         AS minute,
           sum(u.quantity)                                                        AS quantity
    FROM usage u
    JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
    WHERE u.meter = 'energy'
    GROUP BY c.customer_id,
             c.currency,
             date_trunc('hour', u.time),
             date_part('minute', u.time) - date_part('minute', u.time) % 15
)
SELECT customer_id, 'Demand' AS item, max(quantity) * 4 AS quantity, max(quantity) * 4 * 11.75 AS amount, currency
FROM quarters
GROUP BY customer_id, currency

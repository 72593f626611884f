-- What was used before an event, by a join with the events that come earlier.
WITH used AS (
    SELECT w.window_start, u.customer_id, u.currency, u.plan, u.time, u.source, u.id, u.quantity
    FROM months('Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter IN ('storage', 'energy')
), before AS (
    SELECT a.window_start, a.customer_id, a.currency, a.plan, a.id, a.quantity, coalesce(sum(b.quantity), 0) AS earlier
    FROM used a
    LEFT JOIN used b
           ON b.window_start = a.window_start AND b.customer_id = a.customer_id AND (b.time, b.source, b.id) < (a.time, a.source, a.id)
    GROUP BY ALL
), charged AS (
    SELECT window_start, customer_id, currency, plan,
           CASE WHEN earlier >= 100 THEN quantity WHEN earlier + quantity > 100 THEN earlier + quantity - 100 ELSE 0 END AS above
    FROM before
)
SELECT window_start, customer_id, plan, 'Above a hundred' AS item, currency, count(*) AS events,
       sum(above) AS quantity, sum(above * 0.4321) AS amount
FROM charged
GROUP BY ALL

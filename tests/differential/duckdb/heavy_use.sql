WITH used AS (
    SELECT w.window_start, u.customer_id, u.currency, sum(u.quantity) AS total, count(*) AS events
    FROM months('Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'transfer' OR u.meter = 'storage'
    GROUP BY ALL
)
SELECT window_start, customer_id, 'Heavy use' AS item, currency, total - 300 AS quantity, total * 0.0175 - 5.25 AS amount
FROM used
WHERE total > 300 AND events > 2

WITH quarters AS (
    SELECT w.window_start, u.customer_id, u.currency, time_bucket(INTERVAL 15 MINUTE, u.time) AS quarter, sum(u.quantity) AS quantity
    FROM months('Europe/Berlin') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'energy'
    GROUP BY ALL
)
SELECT window_start, customer_id, 'Demand' AS item, currency, 4 * quantity AS quantity, 47 * quantity AS amount
FROM quarters
QUALIFY row_number() OVER (PARTITION BY window_start, customer_id ORDER BY quantity DESC) = 1

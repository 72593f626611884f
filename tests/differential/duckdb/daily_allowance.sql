WITH used AS (
    SELECT w.window_start, u.customer_id, u.currency, sum(u.quantity) AS total
    FROM calendar('2026-03-25', '2026-04-03', INTERVAL 1 DAY, 'Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    GROUP BY ALL
)
SELECT window_start, customer_id, 'Above the allowance' AS item, currency,
       CASE WHEN total > 20 THEN total - 20 ELSE 0 END               AS quantity,
       CASE WHEN total > 20 THEN (total - 20) * 1.234567 ELSE 0 END  AS amount
FROM used

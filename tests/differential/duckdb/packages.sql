WITH used AS (
    SELECT w.window_start, u.customer_id, u.currency, millionths(sum(u.quantity)) AS total
    FROM months('Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'storage'
    GROUP BY ALL
)
SELECT window_start, customer_id, 'Packages' AS item, currency,
       divide_up(total, 25000000)                  AS quantity,
       divide_up(total, 25000000) * 4.99           AS amount,
       (total % 25000000) * power_of_ten(12)       AS in_last_package_e18
FROM used

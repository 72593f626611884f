-- 10000.01 × own ÷ all: cents × millionths ÷ millionths, raised from 10^-2 to 10^-18.
WITH own AS (
    SELECT w.window_start, u.customer_id, u.currency, sum(u.quantity) AS quantity
    FROM months('Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'storage'
    GROUP BY ALL
), everyone AS (
    SELECT w.window_start, sum(u.quantity) AS quantity
    FROM months('Europe/London') w
    JOIN usage u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'storage'
    GROUP BY ALL
)
SELECT own.window_start, customer_id, 'Share of the platform' AS item, currency, own.quantity,
       divide_half_even(1000001 * millionths(own.quantity) * power_of_ten(16), millionths(everyone.quantity)) AS amount_e18
FROM own
JOIN everyone USING (window_start)

WITH seen AS (
    SELECT w.window_start, u.customer_id, u.currency, u.user_name, CAST(timezone('UTC', u.time) AS DATE) AS day
    FROM months('Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'call'
), users AS (
    SELECT window_start, customer_id, currency, count(*) AS quantity
    FROM (SELECT DISTINCT window_start, customer_id, currency, user_name FROM seen)
    GROUP BY ALL
), days AS (
    SELECT window_start, customer_id, currency, count(*) AS days
    FROM (SELECT DISTINCT window_start, customer_id, currency, day FROM seen)
    GROUP BY ALL
)
SELECT window_start, customer_id, 'Users' AS item, currency, days, quantity, quantity * 7.49 AS amount
FROM users
JOIN days USING (window_start, customer_id, currency)

-- The place is one more than the number of those who called more often.
WITH totals AS (
    SELECT w.window_start, u.customer_id, u.currency, sum(u.quantity) AS quantity, count(*) AS calls
    FROM months('Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'call'
    GROUP BY ALL
), placed AS (
    SELECT a.*, 1 + count(b.customer_id) AS place
    FROM totals a
    LEFT JOIN totals b ON b.window_start = a.window_start AND b.currency = a.currency AND b.calls > a.calls
    GROUP BY ALL
)
SELECT window_start, customer_id, 'Volume discount' AS item, currency, place, quantity, quantity * -0.0125 AS amount
FROM placed
WHERE place < 4

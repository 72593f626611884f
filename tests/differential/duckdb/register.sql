-- Each reading and the latest one before it in the window, by a join with what was read earlier.
WITH readings AS (
    SELECT w.window_start, u.subject, u.time, u.quantity
    FROM months('Europe/London') w
    JOIN usage u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'reading'
), steps AS (
    SELECT b.window_start, b.subject, b.time, b.quantity - a.quantity AS step
    FROM readings b
    ASOF JOIN readings a ON a.window_start = b.window_start AND a.subject = b.subject AND b.time > a.time
)
SELECT s.window_start, c.customer_id, 'Water' AS item, c.currency,
       sum(greatest(s.step, 0)) AS quantity, sum(greatest(s.step, 0) * 0.0213) AS amount
FROM steps s
JOIN contracts c ON c.subject = s.subject AND c.valid_from <= s.time AND (c.valid_to IS NULL OR s.time < c.valid_to)
GROUP BY ALL

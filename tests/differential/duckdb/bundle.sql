WITH used AS (
    SELECT w.window_start, u.*,
           bool_or(u.meter = 'transfer' AND u.region = 'eu') OVER subject_in_window  AS transfers,
           bool_or(u.meter = 'session') OVER subject_in_window                       AS has_session
    FROM months('Europe/London') w
    JOIN usage u ON u.time >= w.window_start AND u.time < w.window_end
    WINDOW subject_in_window AS (PARTITION BY w.window_start, u.subject)
)
SELECT u.window_start, c.customer_id, c.contract_id, 'Bundled storage' AS item, c.currency,
       sum(u.quantity) AS quantity, sum(u.quantity * 0.017) AS amount
FROM used u
JOIN contracts c ON c.subject = u.subject AND c.valid_from <= u.time AND (c.valid_to IS NULL OR u.time < c.valid_to)
WHERE u.meter = 'storage' AND u.transfers AND NOT u.has_session
GROUP BY ALL

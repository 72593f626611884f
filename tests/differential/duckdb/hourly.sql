SELECT time_bucket(INTERVAL 1 HOUR, u.time) AS window_start, u.customer_id, 'Energy of the hour' AS item, u.currency,
       sum(u.quantity) AS quantity, sum(u.quantity * 0.2718281) AS amount, min(u.quantity) AS smallest, max(u.quantity) AS largest
FROM contracted u
WHERE u.meter = 'energy' AND u.time >= '2026-03-17 00:00:00+00' AND u.time < '2026-03-18 00:00:00+00'
GROUP BY ALL

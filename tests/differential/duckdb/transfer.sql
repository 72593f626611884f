SELECT w.window_start, u.customer_id, 'Transfer' AS item, u.region, u.currency,
       sum(u.quantity) AS quantity, sum(u.quantity * r.unit_price) AS amount
FROM months('Europe/London') w
JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
JOIN regions r USING (region)
WHERE u.meter = 'transfer'
GROUP BY ALL

SELECT w.window_start, u.customer_id, u.plan, 'Energy' AS item, u.currency, t.valid_from AS priced_from,
       t.unit_price, sum(u.quantity) AS quantity, sum(u.quantity * t.unit_price) AS amount
FROM months('Europe/Berlin') w
JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
ASOF JOIN tariffs t ON t.plan = u.plan AND u.time >= t.valid_from
WHERE u.meter IN ('energy', 'storage')
GROUP BY ALL

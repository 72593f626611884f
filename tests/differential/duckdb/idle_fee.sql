SELECT w.window_start, k.customer_id, 'Idle fee' AS item, k.currency, 9.99 AS amount
FROM months('Asia/Kathmandu') w
CROSS JOIN customers k
LEFT JOIN contracted u
       ON u.customer_id = k.customer_id AND u.time >= w.window_start AND u.time < w.window_end AND u.meter IN ('call', 'storage')
GROUP BY ALL
HAVING count(u.id) = 0

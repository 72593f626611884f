SELECT w.window_start, k.customer_id, 'Minimum spend' AS item, k.currency,
       sum(u.quantity * r.unit_price)                                                              AS unit_price,
       CASE WHEN coalesce(sum(u.quantity * r.unit_price), 0) < k.minimum
            THEN k.minimum - coalesce(sum(u.quantity * r.unit_price), 0) ELSE 0 END               AS amount
FROM months('Europe/London') w
CROSS JOIN customers k
LEFT JOIN (contracted u JOIN regions r USING (region))
       ON u.customer_id = k.customer_id AND u.time >= w.window_start AND u.time < w.window_end AND u.meter = 'transfer'
GROUP BY w.window_start, k.customer_id, k.currency, k.minimum

SELECT w.window_start, c.customer_id, c.contract_id, 'Base fee' AS item, c.currency, 1 AS quantity, c.base_fee AS amount
FROM months('Europe/London') w
JOIN contracts c ON c.valid_from <= w.window_start AND w.window_start < coalesce(c.valid_to, 'infinity')
UNION ALL
SELECT w.window_start, u.customer_id, u.contract_id, 'Jobs', u.currency, sum(u.quantity), sum(u.quantity * 0.333333)
FROM months('Europe/London') w
JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
WHERE u.meter = 'job'
GROUP BY ALL

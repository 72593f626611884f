WITH used AS (
    SELECT w.window_start, u.customer_id, u.plan, u.currency, sum(u.quantity) AS quantity
    FROM calendar('2026-02-02', '2026-04-27', INTERVAL 7 DAY, 'America/New_York') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'call'
    GROUP BY ALL
)
SELECT window_start, customer_id, plan, 'Calls of the week' AS item, currency, quantity,
       sum((least(quantity, t.up_to) - t.low) * t.unit_price + t.flat_fee) AS amount
FROM used
JOIN tiers t USING (plan)
WHERE t.item = 'week' AND quantity > t.low
GROUP BY ALL

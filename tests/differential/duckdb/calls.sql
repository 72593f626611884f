WITH used AS (
    SELECT w.window_start, u.customer_id, u.plan, u.currency, sum(u.quantity) AS quantity
    FROM months('America/New_York') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'call'
    GROUP BY ALL
)
SELECT window_start, customer_id, plan, 'Calls' AS item, currency, quantity, quantity * t.unit_price + t.flat_fee AS amount
FROM used
JOIN tiers t USING (plan)
WHERE t.item = 'call' AND t.low < quantity AND quantity <= t.up_to

WITH used AS (
    SELECT w.window_start, u.customer_id, u.plan, u.currency, sum(u.quantity) AS quantity
    FROM calendar('2026-01-01', '2026-07-01', INTERVAL 3 MONTH, 'Asia/Kathmandu') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'storage'
    GROUP BY ALL
)
SELECT window_start, customer_id, plan, 'Storage of the quarter' AS item, currency, quantity, quantity * t.unit_price + t.flat_fee AS amount
FROM used
JOIN tiers t USING (plan)
WHERE t.item = 'quarter' AND t.low < quantity AND quantity <= t.up_to

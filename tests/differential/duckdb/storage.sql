WITH used AS (
    SELECT w.window_start, u.customer_id, u.contract_id, u.plan, u.currency, sum(u.quantity) AS quantity
    FROM months('Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'storage'
    GROUP BY ALL
)
SELECT window_start, customer_id, contract_id, plan, 'Storage' AS item, currency, quantity,
       sum((least(quantity, t.up_to) - t.low) * t.unit_price + t.flat_fee) AS amount
FROM used
JOIN tiers t USING (plan)
WHERE t.item = 'storage' AND quantity > t.low
GROUP BY ALL

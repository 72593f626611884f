-- Three subqueries where the rule has one aggregation with filters.
WITH transfers AS (
    SELECT w.window_start, u.customer_id, u.currency, u.quantity, u.region, u.priority
    FROM months('UTC') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'transfer' AND coalesce(u.region, '') <> 'moon'
), parts AS (
    SELECT window_start, customer_id, currency, quantity * 0.05 AS amount, 0 AS events FROM transfers WHERE region = 'eu'
    UNION ALL
    SELECT window_start, customer_id, currency, 0.10, 0 FROM transfers WHERE priority IN (3, 4)
    UNION ALL
    SELECT window_start, customer_id, currency, quantity * 0.003, 0 FROM transfers WHERE priority = 0
    UNION ALL
    SELECT window_start, customer_id, currency, 0, 1 FROM transfers
)
SELECT window_start, customer_id, 'Priority transfer' AS item, currency, sum(events) AS events, sum(amount) AS amount
FROM parts
GROUP BY ALL

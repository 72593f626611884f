WITH parts AS (
    SELECT w.window_start, w.window_end, u.customer_id, u.currency, u.quantity, u.base_fee,
           microseconds(least(coalesce(u."end", w.window_end), w.window_end)) - microseconds(u.time) AS time
    FROM calendar('2026-04-01', '2026-04-11', INTERVAL 1 DAY, 'Australia/Lord_Howe') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    WHERE u.meter = 'session'
)
SELECT window_start, customer_id, 'Sessions' AS item, currency, sum(quantity) AS quantity,
       sum(divide_half_even(cents(base_fee) * power_of_ten(16) * time, microseconds(window_end) - microseconds(window_start))) AS amount_e18
FROM parts
GROUP BY ALL

-- Products in units of 10^-20, brought to 10^-18 one by one.
SELECT w.window_start, u.customer_id, 'Job cost' AS item, u.currency,
       sum(divide_half_even(millionths(u.quantity) * CAST(u.cost * power_of_ten(14) AS HUGEINT), 100))   AS amount_e18,
       divide_half_even(millionths(sum(u.quantity)) * power_of_ten(12), 7)                               AS quantity_e18,
       sum(divide_half_even(millionths(u.quantity), 30000)) * power_of_ten(16)                           AS thirds_e18
FROM months('Europe/London') w
JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
WHERE u.meter = 'job'
GROUP BY ALL

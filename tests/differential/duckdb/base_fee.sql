-- Cents × time in the month ÷ length of the month, raised from 10^-2 to 10^-18.
WITH active AS (
    SELECT w.*, c.*,
           microseconds(least(coalesce(c.valid_to, w.window_end), w.window_end))
             - microseconds(greatest(c.valid_from, w.window_start)) AS time
    FROM months('Europe/London') w
    CROSS JOIN contracts c
)
SELECT window_start, customer_id, contract_id, plan, valid_from AS term_from, 'Base fee by time' AS item, currency,
       base_fee AS unit_price,
       divide_half_even(cents(base_fee) * power_of_ten(16) * time, microseconds(window_end) - microseconds(window_start)) AS amount_e18
FROM active
WHERE time > 0

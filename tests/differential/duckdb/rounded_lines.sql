-- Lines in units of 10^-12, divided by the minor unit of the currency in the same units.
WITH lines AS (
    SELECT w.window_start, u.customer_id, u.currency,
           millionths(u.quantity) * millionths(r.unit_price)                                                   AS line,
           power_of_ten(12 - CASE u.currency WHEN 'JPY' THEN 0 WHEN 'KWD' THEN 3 ELSE 2 END)                   AS minor_unit
    FROM months('Europe/London') w
    JOIN contracted u ON u.time >= w.window_start AND u.time < w.window_end
    JOIN regions r USING (region)
    WHERE u.meter = 'transfer'
)
SELECT window_start, customer_id, 'Rounded transfer' AS item, currency,
       sum(divide_half_even(line, minor_unit)) * minor_unit * 1000000  AS amount_e18,
       sum(divide_half_up(line, minor_unit)) * minor_unit * 1000000    AS half_up_e18,
       sum(divide_up(line, minor_unit)) * minor_unit * 1000000         AS away_from_zero_e18,
       sum(divide_down(line, minor_unit)) * minor_unit * 1000000       AS toward_zero_e18
FROM lines
GROUP BY window_start, customer_id, currency, minor_unit

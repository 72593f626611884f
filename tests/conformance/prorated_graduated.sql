-- Prorated graduated: seats come and go within a period. Each event changes the running full quantity, and is charged its
-- share (days active of the period's days, or prorated units of its units) of the change of the graduated price without
-- flat fees. Flat fees are due in full: the first tier's, and that of every tier that the running quantity ever rose into.
-- Nothing is charged when the final quantity is below zero.
CREATE MATERIALIZED VIEW prorated_graduated
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH running AS (
    SELECT p.case_id,
           p.tiers,
           coalesce(e.units, 0)                                                         AS units,
           e.prorated_units,
           e.days,
           e.days_in_period,
           sum(coalesce(e.units, 0)) OVER (PARTITION BY p.case_id ORDER BY e.position)  AS units_after
    FROM prices p
    LEFT JOIN events e ON e.case_id = p.case_id
),
changes AS (
    SELECT case_id, tiers, units, prorated_units, days, days_in_period, units_after,
           prorated_graduated(units_after - units, units_after, 1, tiers) AS full_amount
    FROM running
)
SELECT case_id AS customer_id,
       'total' AS item,
       CASE
           WHEN sum(units) < 0 THEN 0
           -- The share is a fraction of two numbers, multiplied before it is divided: rounded once, thirds add up.
           ELSE sum(coalesce(full_amount * prorated_units / nullif(units, 0),
                             prorate_days(full_amount, days, days_in_period),
                             full_amount))
                + tier_fees(greatest(max(units_after), 0), tiers)
       END     AS amount,
       'USD'   AS currency
FROM changes
GROUP BY case_id, tiers

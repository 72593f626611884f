-- Capacity: a flat price for the first tier in which every unit is at or below its limit; a unit that a tier does not name
-- has none there. What was already billed is taken off. (With one unit only, `capacity(quantity, tiers)` says the same.)
CREATE MATERIALIZED VIEW capacity
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH sufficient AS (
    SELECT c.case_id, t.position, t.price - coalesce(c.already_billed, 0) AS amount
    FROM cases c
    JOIN capacity_tiers t    ON t.case_id = c.case_id
    LEFT JOIN tier_limits l  ON l.case_id = t.case_id AND l.tier = t.position
    LEFT JOIN peaks u        ON u.case_id = l.case_id AND u.unit = l.unit
    GROUP BY c.case_id, c.already_billed, t.position, t.price
    HAVING coalesce(bool_and(u.quantity <= l.quantity_max), TRUE)
),
ranked AS (
    SELECT case_id, amount, row_number() OVER (PARTITION BY case_id ORDER BY position) AS place
    FROM sufficient
)
SELECT case_id AS customer_id,
       'total' AS item,
       amount,
       'USD'   AS currency
FROM ranked
WHERE place = 1

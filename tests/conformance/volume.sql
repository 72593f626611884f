-- Volume: the one tier that holds the quantity prices all of it, units * unit price + flat fee. A prorated quantity can be
-- priced in the tier of the full quantity (tier_units). Units billed earlier in the period count towards the tier: the
-- charge is the amount of all units less the amount of the earlier ones.
CREATE MATERIALIZED VIEW volume
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH quantities AS (
    SELECT c.case_id,
           coalesce(c.prior_units, 0) + c.units AS units,
           c.tier_units,
           c.prior_units,
           coalesce(c.flat_on_zero, FALSE)      AS flat_on_zero,
           p.tiers
    FROM cases c
    JOIN prices p ON p.case_id = c.case_id
)
SELECT case_id AS customer_id,
       'total' AS item,
       volume(units, tiers, flat_on_zero, coalesce(tier_units, units))
           - coalesce(volume(prior_units, tiers, flat_on_zero), 0) AS amount,
       'USD'   AS currency
FROM quantities

-- Per unit: every unit beyond the free ones at one price, max(0, units - free units) * unit price. Without free units a
-- negative quantity (a return) gives a negative amount. Units billed earlier in the period come first: the charge is the
-- amount of all units less the amount of the earlier ones.
CREATE MATERIALIZED VIEW per_unit
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT case_id             AS customer_id,
       'total'             AS item,
       CASE
           WHEN coalesce(free_units, 0) = 0 THEN units
           ELSE overage(coalesce(prior_units, 0) + units, free_units) - overage(coalesce(prior_units, 0), free_units)
       END * price         AS amount,
       'USD'               AS currency
FROM cases

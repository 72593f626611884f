-- Package: units beyond the free ones are sold in whole packages, ceil(max(0, units - free units) / size) * price; started
-- packages count in full, or not at all when rounded down. Units billed earlier in the period come first: the charge is the
-- packages of all units less the packages of the earlier ones.
CREATE MATERIALIZED VIEW package
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH quantities AS (
    SELECT case_id,
           coalesce(prior_units, 0)         AS prior_units,
           coalesce(prior_units, 0) + units AS units,
           package_size,
           price_per_package,
           coalesce(free_units, 0)          AS free_units,
           coalesce(rounding, 'up')         AS rounding
    FROM cases
)
SELECT case_id AS customer_id,
       'total' AS item,
       packages(units, package_size, free_units, rounding)
           - packages(prior_units, package_size, free_units, rounding)                   AS packages,
       package(units, package_size, price_per_package, free_units, rounding)
           - package(prior_units, package_size, price_per_package, free_units, rounding) AS amount,
       'USD'   AS currency
FROM quantities

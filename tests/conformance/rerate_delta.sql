-- Re-rating in runs: every billing run prices the whole quantity so far (less the unit discount), applies the minimum in the
-- last run only and the maximum in every run, rounds, and books the difference to what was booked before. In mode
-- high_water a quantity that falls is priced as the highest so far.
CREATE MATERIALIZED VIEW rerate_delta
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH runs AS (
    SELECT c.case_id,
           r.position,
           CASE c.mode WHEN 'high_water' THEN max(r.units) OVER (PARTITION BY c.case_id ORDER BY r.position) ELSE r.units END AS units,
           CASE WHEN r.position = count(*) OVER (PARTITION BY c.case_id) THEN c.minimum END AS minimum,
           c.maximum,
           coalesce(c.cumulative_dp, 18)   AS places,
           c.unit_discount,
           c.model,
           c.price,
           coalesce(c.free_units, 0)       AS free_units,
           c.package_size,
           coalesce(c.rounding, 'up')      AS rounding,
           c.multiplier,
           coalesce(c.flat_on_zero, FALSE) AS flat_on_zero,
           p.tiers
    FROM cases c
    JOIN billing_runs r ON r.case_id = c.case_id
    LEFT JOIN prices p  ON p.case_id = c.case_id
),
discounted AS (
    SELECT runs.*, CASE WHEN unit_discount IS NULL THEN units ELSE overage(units, unit_discount) END AS billed_units
    FROM runs
),
priced AS (
    SELECT case_id,
           position,
           minimum,
           maximum,
           places,
           CASE model
               WHEN 'per_unit' THEN CASE WHEN free_units = 0 THEN billed_units ELSE overage(billed_units, free_units) END * price
               WHEN 'graduated' THEN graduated(billed_units, tiers, flat_on_zero)
               WHEN 'graduated_percentage' THEN graduated_percentage(billed_units, tiers, flat_on_zero)
               WHEN 'volume' THEN volume(billed_units, tiers, flat_on_zero)
               WHEN 'package' THEN package(billed_units, package_size, price, free_units, rounding)
               WHEN 'dynamic' THEN billed_units * multiplier
               WHEN 'fixed' THEN price
           END AS amount
    FROM discounted
),
cumulative AS (
    SELECT case_id, position, round(at_most(at_least(amount, minimum), maximum), places) AS amount
    FROM priced
),
booked AS (
    SELECT case_id,
           position,
           amount - coalesce(lag(amount) OVER (PARTITION BY case_id ORDER BY position), 0) AS booked_amount
    FROM cumulative
)
SELECT case_id                       AS customer_id,
       'total'                       AS item,
       CAST(NULL AS BIGINT)          AS position,
       -- Null, and with it an error, when a run has no price.
       CASE WHEN count(booked_amount) = count(*) THEN sum(booked_amount) END AS amount,
       CAST(NULL AS DECIMAL(38, 18)) AS amounts,
       'USD'                         AS currency
FROM booked
GROUP BY case_id
UNION ALL
SELECT case_id, 'part', position, 0, booked_amount, 'USD'
FROM booked

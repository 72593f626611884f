-- Converted: usage is counted in one unit and sold in another (bytes and gigabytes). Convert, round to whole units, take off
-- the unit discount, then price what is left by the base model.
CREATE MATERIALIZED VIEW converted
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH converted_units AS (
    SELECT c.case_id,
           CASE c.op WHEN 'divide' THEN c.units / c.factor WHEN 'multiply' THEN c.units * c.factor END AS exact_units,
           c.conversion_rounding,
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
    LEFT JOIN prices p ON p.case_id = c.case_id
),
rounded AS (
    SELECT converted_units.*,
           CASE conversion_rounding
               WHEN 'ceil'    THEN round(exact_units, 0, 'ceiling')
               WHEN 'floor'   THEN round(exact_units, 0, 'floor')
               WHEN 'half_up' THEN round(exact_units, 0, 'half_up')
               ELSE exact_units
           END AS units
    FROM converted_units
),
discounted AS (
    SELECT rounded.*, CASE WHEN unit_discount IS NULL THEN units ELSE overage(units, unit_discount) END AS billed_units
    FROM rounded
)
SELECT case_id AS customer_id,
       'total' AS item,
       units   AS converted_units,
       CASE model
           WHEN 'per_unit' THEN CASE WHEN free_units = 0 THEN billed_units ELSE overage(billed_units, free_units) END * price
           WHEN 'graduated' THEN graduated(billed_units, tiers, flat_on_zero)
           WHEN 'graduated_percentage' THEN graduated_percentage(billed_units, tiers, flat_on_zero)
           WHEN 'volume' THEN volume(billed_units, tiers, flat_on_zero)
           WHEN 'package' THEN package(billed_units, package_size, price, free_units, rounding)
           WHEN 'dynamic' THEN billed_units * multiplier
           WHEN 'fixed' THEN price
       END     AS amount,
       'USD'   AS currency
FROM discounted

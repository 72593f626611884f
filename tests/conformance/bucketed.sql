-- Usage priced by time bucket: every bucket's quantity by the base model on its own (tiers and packages restart), then summed.
CREATE MATERIALIZED VIEW bucketed
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH priced AS (
    SELECT b.case_id,
           CASE p.model
               WHEN 'per_unit'   THEN CASE WHEN coalesce(p.free_units, 0) = 0 THEN b.units ELSE overage(b.units, p.free_units) END * p.price
               WHEN 'graduated'  THEN graduated(b.units, t.tiers, coalesce(p.flat_on_zero, FALSE))
               WHEN 'volume'     THEN volume(b.units, t.tiers, coalesce(p.flat_on_zero, FALSE))
               WHEN 'package'    THEN package(b.units, p.package_size, p.package_price, coalesce(p.free_units, 0),
                                         coalesce(p.rounding, 'up'))
               WHEN 'dynamic'    THEN b.units * p.multiplier
               WHEN 'fixed'      THEN p.fee
               WHEN 'demand'     THEN at_least(b.units, p.minimum_kw) * p.price_per_kw
           END AS amount
    FROM price p
    JOIN buckets b ON b.case_id = p.case_id
    LEFT JOIN tiers t ON t.case_id = p.case_id
),
totals AS (
    SELECT case_id, CASE WHEN count(amount) = count(*) THEN sum(amount) END AS amount
    FROM priced
    GROUP BY case_id
)
SELECT p.case_id                                                AS customer_id,
       'total'                                                  AS item,
       CASE WHEN t.case_id IS NULL THEN 0 ELSE t.amount END     AS amount,
       'USD'                                                    AS currency
FROM price p
LEFT JOIN totals t ON t.case_id = p.case_id

-- Composite: a charge of several components. Each component is priced by its own model on its own usage, and tax is added to
-- it; the sum is multiplied (months, or units of an abstract price) and capped by the maximum. Most models price a quantity:
-- the units, or the sum of the amounts that the events carry. A percentage prices every event (allowances of free events
-- are left to percentage.sql), demand the peak, not below a minimum nor below a percentage of the highest peak before.
CREATE MATERIALIZED VIEW composite
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH quantities AS (
    SELECT c.case_id,
           c.name,
           coalesce(i.units, (SELECT sum(a.amount) FROM event_amounts a WHERE a.case_id = c.case_id AND a.name = c.name)) AS units,
           at_least(at_least(i.peak_kw, c.minimum_kw),
                    (SELECT max(k.peak_kw) FROM previous_peaks k WHERE k.case_id = c.case_id AND k.name = c.name)
                        * c.ratchet_percent / 100)  AS billed_kw,
           coalesce(c.month_factor * i.days, 1)     AS months,
           c.model,
           c.price,
           coalesce(c.free_units, 0)                AS free_units,
           c.package_size,
           coalesce(c.rounding, 'up')               AS rounding,
           c.multiplier,
           coalesce(c.flat_on_zero, FALSE)          AS flat_on_zero,
           coalesce(c.mode, 'reached')              AS mode,
           p.tiers,
           s.tiers                                  AS steps
    FROM components c
    LEFT JOIN inputs i ON i.case_id = c.case_id AND i.name = c.name
    LEFT JOIN prices p ON p.case_id = c.case_id AND p.name = c.name
    LEFT JOIN steps s  ON s.case_id = c.case_id AND s.name = c.name
    WHERE c.model <> 'percentage'
),
priced AS (
    SELECT case_id,
           name,
           CASE model
               WHEN 'per_unit' THEN CASE WHEN free_units = 0 THEN units ELSE overage(units, free_units) END * price
               WHEN 'graduated' THEN graduated(units, tiers, flat_on_zero)
               WHEN 'graduated_percentage' THEN graduated_percentage(units, tiers, flat_on_zero)
               WHEN 'volume' THEN volume(units, tiers, flat_on_zero)
               WHEN 'package' THEN package(units, package_size, price, free_units, rounding)
               WHEN 'stairstep' THEN stairstep(units, steps, mode)
               WHEN 'dynamic' THEN coalesce(units, 0) * multiplier
               WHEN 'demand' THEN billed_kw * price * months
               WHEN 'fixed' THEN price
           END AS amount
    FROM quantities
    UNION ALL
    SELECT c.case_id,
           c.name,
           CASE
               WHEN c.free_events IS NULL AND c.free_amount IS NULL
                   THEN coalesce(sum(percentage(e.amount, c.rate_percent, coalesce(c.fixed_fee, 0), c.event_min, c.event_max)), 0)
           END
    FROM components c
    LEFT JOIN events e ON e.case_id = c.case_id AND e.name = c.name
    WHERE c.model = 'percentage'
    GROUP BY c.case_id, c.name, c.free_events, c.free_amount
),
taxed AS (
    SELECT p.case_id, p.name, p.amount + percentage(p.amount, coalesce(t.tax_percent, 0)) AS taxed_amount, t.multiplier, t.maximum
    FROM priced p
    JOIN cases t ON t.case_id = p.case_id
)
SELECT case_id                       AS customer_id,
       'total'                       AS item,
       CAST(NULL AS VARCHAR)         AS name,
       -- Null, and with it an error, when a component has no price.
       CASE WHEN count(taxed_amount) = count(*) THEN at_most(sum(taxed_amount) * coalesce(multiplier, 1), maximum) END AS amount,
       CAST(NULL AS DECIMAL(38, 18)) AS component_amounts,
       'USD'                         AS currency
FROM taxed
GROUP BY case_id, multiplier, maximum
UNION ALL
SELECT case_id, 'part', name, 0, taxed_amount, 'USD'
FROM taxed

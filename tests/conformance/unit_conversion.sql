-- Unit conversion: divide or multiply by a factor, then round to whole units or not at all.
CREATE MATERIALIZED VIEW unit_conversion
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH converted AS (
    SELECT case_id, rounding, CASE op WHEN 'divide' THEN units / factor WHEN 'multiply' THEN units * factor END AS units
    FROM cases
)
SELECT case_id AS customer_id,
       'total' AS item,
       CASE rounding
           WHEN 'ceil'    THEN round(units, 0, 'ceiling')
           WHEN 'floor'   THEN round(units, 0, 'floor')
           WHEN 'half_up' THEN round(units, 0, 'half_up')
           ELSE units
       END     AS units,
       0       AS amount,
       'USD'   AS currency
FROM converted

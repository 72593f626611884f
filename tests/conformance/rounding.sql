-- Rounding to decimal places, negative ones being tens and hundreds: half up (halves away from zero), ceil (towards plus
-- infinity) or floor (towards minus infinity).
CREATE MATERIALIZED VIEW rounding
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT case_id                                                                       AS customer_id,
       'total'                                                                       AS item,
       round(value, dp, CASE mode WHEN 'ceil' THEN 'ceiling' ELSE mode END)          AS value,
       0                                                                             AS amount,
       'USD'                                                                         AS currency
FROM cases

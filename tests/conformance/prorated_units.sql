-- Prorated units: the units at the period's opening, plus every change times the share of the period's days that it lasted.
CREATE MATERIALIZED VIEW prorated_units
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH changes AS (
    -- Unit days are added up before they are divided, so that three thirds are one.
    SELECT c.case_id, c.opening_units, prorate_days(sum(e.units * e.days), 1, e.days_in_period) AS units
    FROM cases c
    LEFT JOIN events e ON e.case_id = c.case_id
    GROUP BY c.case_id, c.opening_units, e.days_in_period
)
SELECT case_id                                              AS customer_id,
       'total'                                              AS item,
       coalesce(opening_units, 0) + coalesce(sum(units), 0) AS units,
       0                                                    AS amount,
       'USD'                                                AS currency
FROM changes
GROUP BY case_id, opening_units

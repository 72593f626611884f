-- Steps: the price of the step that the quantity falls in ('reached'), or the prices of all steps entered ('cumulative').
CREATE MATERIALIZED VIEW stairstep
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT q.case_id                                                AS customer_id,
       'total'                                                  AS item,
       stairstep(q.units, s.tiers, coalesce(q.mode, 'reached')) AS amount,
       'USD'                                                    AS currency
FROM consumption q
JOIN steps s ON s.case_id = q.case_id

-- Window sum: the units of all events with period start <= time < period end (the end included where it is inclusive), and,
-- where a cut-off is given, only of those stored before it.
CREATE MATERIALIZED VIEW window_sum
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT c.case_id                    AS customer_id,
       'total'                      AS item,
       coalesce(sum(e.units), 0)    AS units,
       0                            AS amount,
       'USD'                        AS currency
FROM cases c
LEFT JOIN events e ON e.case_id = c.case_id
                  AND e.used_at >= c.period_start
                  AND (e.used_at < c.period_end OR (c.end_inclusive AND e.used_at = c.period_end))
                  AND (c.stored_before IS NULL OR e.stored_at < c.stored_before)
GROUP BY c.case_id

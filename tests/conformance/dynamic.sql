-- Dynamic: the price comes with the usage. The units, or the sum of the amounts that the events carry, times a multiplier.
CREATE MATERIALIZED VIEW dynamic
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT c.case_id                                                   AS customer_id,
       'total'                                                     AS item,
       coalesce(c.units, sum(e.amount), 0) * c.multiplier          AS amount,
       'USD'                                                       AS currency
FROM cases c
LEFT JOIN events e ON e.case_id = c.case_id
GROUP BY c.case_id, c.units, c.multiplier

-- A sum of rounded amounts, or a rounded sum: the order makes the difference.
CREATE MATERIALIZED VIEW sum_rounding
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH sums AS (
    SELECT l.case_id,
           sum(round(l.amount, r.places, 'half_up')) AS of_rounded,
           sum(l.amount)                             AS exact
    FROM rounding_rule r
    JOIN invoice_line l ON l.case_id = r.case_id
    GROUP BY l.case_id
)
SELECT r.case_id                                                     AS customer_id,
       'total'                                                       AS item,
       CASE r.rounding_order
           WHEN 'round_then_sum' THEN coalesce(s.of_rounded, 0)
           WHEN 'sum_then_round' THEN round(coalesce(s.exact, 0), r.places, 'half_up')
       END                                                           AS amount,
       'USD'                                                         AS currency
FROM rounding_rule r
LEFT JOIN sums s ON s.case_id = r.case_id

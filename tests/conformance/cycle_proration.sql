-- Cycles billed in advance up to a target date: one for each whole cycle that starts at or before it, and for a stub
-- its share of the days of a cycle.
CREATE MATERIALIZED VIEW cycle_proration
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT s.case_id                                                                               AS customer_id,
       'total'                                                                                 AS item,
       0                                                                                       AS amount,
       'USD'                                                                                   AS currency,
       billing_cycles(s.start_date, s.end_date, s.target_date, s.billing_period, s.anchor_day) AS cycles
FROM subscription s

-- A credit note gives back at most what is left of the invoice after earlier credits.
--   credit = min(max(0, potential), max(0, original - previous credits))
CREATE MATERIALIZED VIEW credit_cap
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT c.case_id                                                                           AS customer_id,
       'total'                                                                             AS item,
       0                                                                                   AS amount,
       'USD'                                                                               AS currency,
       at_most(at_least(c.potential, 0), at_least(c.original - c.previous_credits, 0))     AS credit
FROM credit_note c

-- Proration by days: amount * days / days in the period.
CREATE MATERIALIZED VIEW day_proration
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT case_id                                        AS customer_id,
       'total'                                        AS item,
       prorate_days(price, days, days_in_period)      AS amount,
       'USD'                                          AS currency
FROM cases

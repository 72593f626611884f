-- Minimum spend: what is missing to the minimum is charged on top, max(0, minimum * days / days in the period - charged);
-- without days the minimum is due in full.
CREATE MATERIALIZED VIEW minimum_spend
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT case_id AS customer_id,
       'total' AS item,
       greatest(prorate_days(minimum, coalesce(days, 1), coalesce(days_in_period, 1)) - charged, 0) AS amount,
       'USD'   AS currency
FROM cases

-- A fixed amount, whatever the usage.
CREATE MATERIALIZED VIEW fixed
WITH (window = 'year', effective_from = '2000-01-01')
AS
SELECT f.case_id AS customer_id,
       'total'   AS item,
       f.fee     AS amount,
       'USD'     AS currency
FROM fees f

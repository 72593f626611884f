-- A reference table has no windows.
CREATE MATERIALIZED VIEW minimum
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01', history = '11 windows')
AS
SELECT 'acme' AS customer_id,
       'Price' AS item,
       count(*) AS amount,
       'GBP' AS currency
FROM earlier.prices d

-- Energy by period: the fixed charge and, for each period, its units at its price.
CREATE MATERIALIZED VIEW period_rates
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH energy AS (
    SELECT c.case_id, sum(c.units * p.price) AS amount
    FROM consumption c
    JOIN prices p ON p.case_id = c.case_id AND p.period_name = c.period_name
    GROUP BY c.case_id
)
SELECT t.case_id                                          AS customer_id,
       'total'                                            AS item,
       coalesce(t.fixed_charge, 0) + coalesce(e.amount, 0) AS amount,
       'USD'                                              AS currency
FROM tariff t
LEFT JOIN energy e ON e.case_id = t.case_id

-- Electricity tax on every kilowatt-hour that the two energy rules charged in the month: a rule over rules.
CREATE MATERIALIZED VIEW electricity_tax
WITH (window = 'month', timezone = 'Europe/Berlin', grace = '2 days', effective_from = '2024-03-01', fan_out = 'allowed')
AS
WITH energy AS (
    SELECT t.customer_id, t.contract_id, t.currency, t.quantity FROM energy_by_time t
    UNION ALL
    SELECT r.customer_id, r.contract_id, r.currency, r.quantity FROM energy_by_register r
)
SELECT e.customer_id,
       e.contract_id,
       'Electricity tax'          AS item,
       sum(e.quantity)            AS quantity,
       'kWh'                      AS unit,
       x.rate                     AS unit_price,
       sum(e.quantity) * x.rate   AS amount,
       e.currency
FROM energy e
CROSS JOIN billing_window w
JOIN taxes FOR SYSTEM_TIME AS OF w.window_start AS x ON x.tax = 'electricity'
GROUP BY e.customer_id, e.contract_id, e.currency, x.rate

-- The supply charge of each local day on which a contract holds. Reads no usage.
CREATE MATERIALIZED VIEW supply_charge
WITH (window = 'day', timezone = 'Europe/Berlin', grace = '2 days', effective_from = '2024-03-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Supply charge'   AS item,
       1                 AS quantity,
       'day'             AS unit,
       t.daily_fee       AS unit_price,
       t.daily_fee       AS amount,
       c.currency
FROM billing_window w
CROSS JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c
JOIN tariffs t ON t.tariff = c.tariff

-- A price that changes in the middle of a month, and on a day of 23 hours.
CREATE MATERIALIZED VIEW energy
WITH (window = 'month', timezone = 'Europe/Berlin', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       c.plan,
       'Energy'                        AS item,
       t.unit_price,
       t.valid_from                    AS priced_from,
       sum(u.quantity)                 AS quantity,
       sum(u.quantity * t.unit_price)  AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN tariffs FOR SYSTEM_TIME AS OF u.time AS t ON t.plan = c.plan
WHERE u.meter IN ('energy', 'storage')
GROUP BY c.customer_id, c.plan, t.unit_price, t.valid_from, c.currency

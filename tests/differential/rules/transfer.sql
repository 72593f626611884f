-- Quantity × price, one line per region; a region without a price is not charged.
CREATE MATERIALIZED VIEW transfer
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       'Transfer'                        AS item,
       u.region,
       sum(u.quantity)                   AS quantity,
       sum(u.quantity * r.unit_price)    AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN regions r ON r.region = u.region
WHERE u.meter = 'transfer'
GROUP BY c.customer_id, u.region, c.currency

-- Those who called most often in each currency get something back: rank(), with ties.
CREATE MATERIALIZED VIEW top_discount
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01', fan_out = 'allowed')
AS
WITH totals AS (
    SELECT c.customer_id, c.currency, sum(u.quantity) AS quantity, count(*) AS calls
    FROM usage u
    JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
    WHERE u.meter = 'call'
    GROUP BY c.customer_id, c.currency
), ranked AS (
    SELECT customer_id, currency, quantity, rank() OVER (PARTITION BY currency ORDER BY calls DESC) AS place
    FROM totals
)
SELECT customer_id, 'Volume discount' AS item, place, quantity, -(quantity * 0.0125) AS amount, currency
FROM ranked
WHERE place <= 3

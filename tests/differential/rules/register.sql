-- A cumulative register: the steps between readings by lag(); a step back is a new meter and not charged.
CREATE MATERIALIZED VIEW register
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01', fan_out = 'allowed')
AS
WITH steps AS (
    SELECT u.subject, u.time, u.quantity - lag(u.quantity) OVER (PARTITION BY u.subject ORDER BY u.time) AS step
    FROM usage u
    WHERE u.meter = 'reading'
)
SELECT c.customer_id,
       'Water'                                                    AS item,
       sum(CASE WHEN s.step > 0 THEN s.step ELSE 0 END)           AS quantity,
       sum(CASE WHEN s.step > 0 THEN s.step ELSE 0 END) * 0.0213  AS amount,
       c.currency
FROM steps s
JOIN contracts FOR SYSTEM_TIME AS OF s.time AS c ON c.subject = s.subject
WHERE s.step IS NOT NULL
GROUP BY c.customer_id, c.currency

-- The first hundred units of a month are free, in order of time: a running sum() OVER.
CREATE MATERIALIZED VIEW running_allowance
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01', fan_out = 'allowed')
AS
WITH running AS (
    SELECT c.customer_id,
           c.currency,
           c.plan,
           u.quantity,
           sum(u.quantity) OVER (PARTITION BY c.customer_id ORDER BY u.time, u.source, u.id
                                 ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS total
    FROM usage u
    JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
    WHERE u.meter IN ('storage', 'energy')
)
SELECT customer_id,
       plan,
       'Above a hundred'                                             AS item,
       sum(greatest(least(total - 100, quantity), 0.0))              AS quantity,
       sum(greatest(least(total - 100, quantity), 0.0) * 0.4321)     AS amount,
       count(*)                                                      AS events,
       currency
FROM running
GROUP BY customer_id, plan, currency

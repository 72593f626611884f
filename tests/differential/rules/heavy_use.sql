-- Only customers above a threshold: HAVING.
CREATE MATERIALIZED VIEW heavy_use
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       'Heavy use'                       AS item,
       sum(u.quantity) - 300             AS quantity,
       (sum(u.quantity) - 300) * 0.0175  AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter IN ('transfer', 'storage')
GROUP BY c.customer_id, c.currency
HAVING sum(u.quantity) > 300 AND count(*) >= 3

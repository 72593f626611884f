-- Storage in GB-hours: an event tells the level of a project from then on, which holds until the next one.
-- `opening` holds the level at the beginning of the period, so a project whose level never changes pays, too.
CREATE MATERIALIZED VIEW storage
WITH (window = 'billing_period', grace = '6 hours', effective_from = '2025-01-01', carry = 'subject, meter', fan_out = 'allowed')
AS
WITH levels AS (
    SELECT o.subject, o.time, o.quantity FROM opening o WHERE o.meter = 'storage_gb'
    UNION ALL
    SELECT u.subject, u.time, u.quantity FROM usage u WHERE u.meter = 'storage_gb'
),
projects AS (
    SELECT l.subject, weighted(l.quantity, l.time, w.window_start, w.window_end) AS gb_hours
    FROM levels l
    CROSS JOIN billing_window w
    GROUP BY l.subject
)
SELECT c.customer_id,
       c.contract_id,
       'Storage'                              AS item,
       sum(s.gb_hours)                        AS quantity,
       'GB-hour'                              AS unit,
       graduated(sum(s.gb_hours), p.tiers)    AS amount,
       c.currency
FROM projects s
CROSS JOIN billing_window w
JOIN contracts FOR SYSTEM_TIME AS OF w.window_start AS c ON c.subject = s.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'storage'
GROUP BY c.customer_id, c.contract_id, c.currency, p.tiers

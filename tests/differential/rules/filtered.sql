-- Aggregates with FILTER and CASE; credits have a negative quantity.
CREATE MATERIALIZED VIEW filtered
WITH (window = 'month', timezone = 'UTC', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       'Priority transfer'                                                            AS item,
       coalesce(sum(u.quantity) FILTER (WHERE u.region = 'eu'), 0) * 0.05
         + count(*) FILTER (WHERE u.priority > 2) * 0.10
         + sum(CASE WHEN u.priority = 0 THEN u.quantity ELSE 0 END) * 0.003           AS amount,
       count(*)                                                                       AS events,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'transfer' AND (u.region IS NULL OR u.region <> 'moon')
GROUP BY c.customer_id, c.currency

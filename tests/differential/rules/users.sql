-- A seat for every different user; users stand in an attribute.
CREATE MATERIALIZED VIEW users
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       'Users'                                                AS item,
       count(DISTINCT u.attributes['data.user'])              AS quantity,
       count(DISTINCT u.attributes['data.user']) * 7.49       AS amount,
       count(DISTINCT date_trunc('day', u.time))              AS days,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'call'
GROUP BY c.customer_id, c.currency

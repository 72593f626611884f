-- Whole packages of 25, rounded up, and the rest of the last one.
CREATE MATERIALIZED VIEW packages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       'Packages'                                      AS item,
       round(sum(u.quantity) / 25, 0, 'up')            AS quantity,
       round(sum(u.quantity) / 25, 0, 'up') * 4.99     AS amount,
       sum(u.quantity) % 25                            AS in_last_package,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
WHERE u.meter = 'storage'
GROUP BY c.customer_id, c.currency

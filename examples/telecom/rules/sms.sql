-- Messages above the free ones, in whole packages; all lines of a contract share them.
CREATE MATERIALIZED VIEW sms
WITH (window = 'month', timezone = 'Europe/Madrid', grace = '3 days', effective_from = '2025-10-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'SMS'                                                                            AS item,
       packages(sum(u.quantity), p.sms_package, p.sms_free)                             AS quantity,
       'package'                                                                        AS unit,
       p.sms_package_price                                                              AS unit_price,
       package(sum(u.quantity), p.sms_package, p.sms_package_price, p.sms_free)         AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN plans p ON p.plan = c.plan
WHERE u.meter = 'sms'
GROUP BY c.customer_id, c.contract_id, c.currency, p.sms_package, p.sms_package_price, p.sms_free

-- Energy of smart meters, priced by the time of day at which it was used.
-- A reading covers an interval; it is split where the price changes, in proportion to time. On the day of the change to
-- summer time the night has an hour less, on a public holiday the prices of Sunday hold.
CREATE MATERIALIZED VIEW energy_by_time
WITH (window = 'month', timezone = 'Europe/Berlin', grace = '2 days', effective_from = '2024-03-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Energy'                                                                                  AS item,
       sum(u.quantity)                                                                           AS quantity,
       'kWh'                                                                                     AS unit,
       sum(time_of_use(u.time, u."end", u.quantity, 'Europe/Berlin', p.windows, h.holidays))     AS amount,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN energy_prices p   ON p.tariff = c.tariff
JOIN public_holidays h ON h.country = 'DE'
WHERE u.meter = 'energy'
GROUP BY c.customer_id, c.contract_id, c.currency

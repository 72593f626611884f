-- What a service owes for the sales of a work: a percentage of each sale, in the currency of its contract at the rate of
-- the sale's day, within the minimum and maximum that hold for every single sale.
CREATE MATERIALIZED VIEW licence_fees
WITH (window = 'month', grace = '5 days', effective_from = '2025-06-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Licence ' || u.work                                                              AS item,
       count(*)                                                                          AS quantity,
       'sale'                                                                            AS unit,
       sum(percentage(convert(u.quantity, u.sale_currency, c.currency, u.time),
                      t.rate, t.fixed_fee, t.minimum, t.maximum))                        AS amount,
       c.currency,
       u.work
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN tariffs t ON t.tariff = c.tariff
WHERE u.meter = 'sale'
GROUP BY c.customer_id, c.contract_id, c.currency, u.work

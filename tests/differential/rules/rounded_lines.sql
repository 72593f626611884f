-- Every event rounded to the currency by itself, in each mode; yen have no places, Kuwaiti dinars three.
CREATE MATERIALIZED VIEW rounded_lines
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-02-01', effective_to = '2026-05-01')
AS
SELECT c.customer_id,
       'Rounded transfer'                                                      AS item,
       sum(round_money(u.quantity * r.unit_price, c.currency, 'half_even'))    AS amount,
       sum(round_money(u.quantity * r.unit_price, c.currency))                 AS half_up,
       sum(round_money(u.quantity * r.unit_price, c.currency, 'up'))           AS away_from_zero,
       sum(round_money(u.quantity * r.unit_price, c.currency, 'down'))         AS toward_zero,
       c.currency
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN regions r ON r.region = u.region
WHERE u.meter = 'transfer'
GROUP BY c.customer_id, c.currency

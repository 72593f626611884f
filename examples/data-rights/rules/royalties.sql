-- What the holders of the rights are owed: the fees of a work without the commission, split by their parts. A rule over a rule.
-- Each part is cut to the cent; the cents that are left go to the greatest holder, so that no cent is lost or made.
CREATE MATERIALIZED VIEW royalties
WITH (window = 'month', grace = '5 days', effective_from = '2025-06-01', fan_out = 'allowed')
AS
WITH pots AS (
    SELECT f.work, f.currency,
           round_money(percentage(sum(f.amount), 100 - k.commission_percent), f.currency, 'down') AS pot
    FROM licence_fees f
    JOIN works k ON k.work = f.work
    GROUP BY f.work, f.currency, k.commission_percent
),
holders AS (
    SELECT p.work, p.currency, p.pot, s.holder, s.parts,
           sum(s.parts) OVER (PARTITION BY p.work, p.currency)                                        AS all_parts,
           row_number() OVER (PARTITION BY p.work, p.currency ORDER BY s.parts DESC, s.holder)        AS place
    FROM pots p
    CROSS JOIN billing_window w
    JOIN shares FOR SYSTEM_TIME AS OF w.window_start AS s ON s.work = p.work
),
cut AS (
    SELECT h.work, h.currency, h.pot, h.holder, h.place,
           round_money(h.pot * h.parts / h.all_parts, h.currency, 'down') AS amount
    FROM holders h
),
payable AS (
    SELECT c.work, c.currency, c.holder, c.place, c.amount,
           c.pot - sum(c.amount) OVER (PARTITION BY c.work, c.currency) AS remainder
    FROM cut c
)
SELECT y.holder                                                                        AS customer_id,
       'Royalties ' || y.work                                                          AS item,
       -(CASE WHEN y.place = 1 THEN y.amount + y.remainder ELSE y.amount END)          AS amount,
       y.currency,
       y.work
FROM payable y

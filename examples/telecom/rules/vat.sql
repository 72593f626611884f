-- VAT on the lines of the invoice as they are billed, that is rounded: a rule over all other rules.
CREATE MATERIALIZED VIEW vat
WITH (window = 'month', timezone = 'Europe/Madrid', grace = '3 days', effective_from = '2025-10-01', fan_out = 'allowed',
      rounding = 'half_up')
AS
WITH lines AS (
    SELECT k.customer_id, k.contract_id, k.currency, k.amount FROM calls k
    UNION ALL
    SELECT s.customer_id, s.contract_id, s.currency, s.amount FROM sms s
    UNION ALL
    SELECT d.customer_id, d.contract_id, d.currency, d.amount FROM mobile_data d
    UNION ALL
    SELECT m.customer_id, m.contract_id, m.currency, m.amount FROM minimum_spend m
),
net AS (
    SELECT l.customer_id, l.contract_id, l.currency, sum(round_money(l.amount, l.currency)) AS amount
    FROM lines l
    GROUP BY l.customer_id, l.contract_id, l.currency
)
SELECT n.customer_id,
       n.contract_id,
       'VAT'                                                    AS item,
       n.amount                                                 AS quantity,
       'net amount'                                             AS unit,
       round_money(percentage(n.amount, v.rate), n.currency)    AS amount,
       n.currency
FROM net n
CROSS JOIN billing_window w
JOIN vat_rates FOR SYSTEM_TIME AS OF w.window_start AS v ON v.country = 'ES'

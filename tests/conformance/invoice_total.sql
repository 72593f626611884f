-- An invoice: coupons of a line, then coupons of the invoice on the running total, tax on what is left, credits after tax.
--   a coupon leaves max(0, amount * kept - taken_off): kept = 1 - percent / 100 of a percentage, taken_off = a fixed value
--   tax = taxable * sum of rates / 100 (rates add up, they do not compound),   amount = taxable + tax - credits
-- Up to three coupons per line and per invoice, side by side. A fourth makes the amount null, which is refused rather than billed.
CREATE MATERIALIZED VIEW invoice_total
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH line_steps AS (
    SELECT l.case_id, l.line, l.amount,
           CASE WHEN c.kind = 'percent' THEN 1 - c.value / 100 END              AS kept,
           CASE WHEN c.kind = 'fixed' THEN c.value END                          AS taken_off,
           row_number() OVER (PARTITION BY l.case_id, l.line ORDER BY c.position) AS place
    FROM lines l
    LEFT JOIN line_coupons c ON c.case_id = l.case_id AND (c.line IS NULL OR c.line = l.line)
),
line_chain AS (
    SELECT s.case_id, s.line, s.amount, count(*) AS coupons,
           coalesce(max(CASE WHEN s.place = 1 THEN s.kept END), 1)      AS kept_1,
           coalesce(max(CASE WHEN s.place = 1 THEN s.taken_off END), 0) AS taken_off_1,
           coalesce(max(CASE WHEN s.place = 2 THEN s.kept END), 1)      AS kept_2,
           coalesce(max(CASE WHEN s.place = 2 THEN s.taken_off END), 0) AS taken_off_2,
           coalesce(max(CASE WHEN s.place = 3 THEN s.kept END), 1)      AS kept_3,
           coalesce(max(CASE WHEN s.place = 3 THEN s.taken_off END), 0) AS taken_off_3
    FROM line_steps s
    GROUP BY s.case_id, s.line, s.amount
),
line_nets AS (
    SELECT case_id, coupons, at_least(((amount * kept_1 - taken_off_1) * kept_2 - taken_off_2) * kept_3 - taken_off_3, 0) AS net
    FROM line_chain
),
line_totals AS (
    SELECT case_id, max(coupons) AS coupons, sum(net) AS total FROM line_nets GROUP BY case_id
),
invoice_steps AS (
    SELECT c.case_id,
           CASE WHEN c.kind = 'percent' THEN 1 - c.value / 100 END              AS kept,
           CASE WHEN c.kind = 'fixed' THEN c.value END                          AS taken_off,
           row_number() OVER (PARTITION BY c.case_id ORDER BY c.position)       AS place
    FROM invoice_coupons c
),
invoice_chain AS (
    SELECT s.case_id, count(*) AS coupons,
           coalesce(max(CASE WHEN s.place = 1 THEN s.kept END), 1)      AS kept_1,
           coalesce(max(CASE WHEN s.place = 1 THEN s.taken_off END), 0) AS taken_off_1,
           coalesce(max(CASE WHEN s.place = 2 THEN s.kept END), 1)      AS kept_2,
           coalesce(max(CASE WHEN s.place = 2 THEN s.taken_off END), 0) AS taken_off_2,
           coalesce(max(CASE WHEN s.place = 3 THEN s.kept END), 1)      AS kept_3,
           coalesce(max(CASE WHEN s.place = 3 THEN s.taken_off END), 0) AS taken_off_3
    FROM invoice_steps s
    GROUP BY s.case_id
),
tax_rates AS (
    SELECT case_id, sum(percent) AS percent FROM taxes GROUP BY case_id
),
taxed AS (
    SELECT i.case_id, i.credits, coalesce(r.percent, 0) AS percent,
           CASE WHEN coalesce(l.coupons, 0) <= 3 AND coalesce(c.coupons, 0) <= 3
                THEN at_least(((coalesce(l.total, 0) * coalesce(c.kept_1, 1) - coalesce(c.taken_off_1, 0))
                    * coalesce(c.kept_2, 1) - coalesce(c.taken_off_2, 0))
                    * coalesce(c.kept_3, 1) - coalesce(c.taken_off_3, 0), 0) END AS taxable
    FROM invoice i
    LEFT JOIN line_totals l ON l.case_id = i.case_id
    LEFT JOIN invoice_chain c ON c.case_id = i.case_id
    LEFT JOIN tax_rates r ON r.case_id = i.case_id
)
SELECT t.case_id                                                               AS customer_id,
       'total'                                                                 AS item,
       t.taxable + t.taxable * t.percent / 100 - coalesce(t.credits, 0)        AS amount,
       'USD'                                                                   AS currency,
       t.taxable                                                               AS taxable,
       t.taxable * t.percent / 100                                             AS tax
FROM taxed t

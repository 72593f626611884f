-- A charging session: each period's quantity at its component's price. Steps are rounded up once per session: for energy
-- on its total, for time on the total of parking if the session ends parked and else of charging, for reservation on its
-- total. The step of the last period counts, and what it adds is billed with that period.
-- Minimum and maximum hold before tax and after tax by themselves.
CREATE MATERIALIZED VIEW session_steps
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH used AS (
    SELECT p.case_id, p.position, p.quantity, c.name, c.dimension, c.price, coalesce(c.per, 1) AS per, c.step,
           coalesce(c.tax_percent, 0) AS tax_percent,
           CASE WHEN c.dimension IN ('charging', 'parking') THEN 'time' ELSE c.dimension END AS stepped_with
    FROM periods p
    JOIN components c ON c.case_id = p.case_id AND c.name = p.component
),
summed AS (
    SELECT u.case_id, u.name, u.price, u.per, u.step, u.tax_percent, u.quantity,
           sum(u.quantity) OVER (PARTITION BY u.case_id, u.dimension)                                  AS session_quantity,
           row_number() OVER (PARTITION BY u.case_id, u.stepped_with ORDER BY u.position DESC)         AS place_from_end
    FROM used u
),
billed AS (
    SELECT s.case_id, s.name, s.price, s.per, s.tax_percent,
           s.quantity + CASE WHEN s.place_from_end = 1 AND s.step IS NOT NULL
                             THEN round_up_to(s.session_quantity, s.step) - s.session_quantity ELSE 0 END AS quantity
    FROM summed s
),
component_totals AS (
    SELECT b.case_id, b.name, sum(b.quantity) AS quantity, sum(b.quantity * b.price / b.per) AS amount,
           sum(b.quantity * b.price / b.per * (1 + b.tax_percent / 100)) AS amount_with_tax
    FROM billed b
    GROUP BY b.case_id, b.name
),
session_totals AS (
    SELECT case_id, sum(amount) AS amount, sum(amount_with_tax) AS amount_with_tax FROM component_totals GROUP BY case_id
)
SELECT l.case_id                                                                                  AS customer_id,
       'total'                                                                                    AS item,
       at_most(at_least(coalesce(t.amount, 0), l.minimum), l.maximum)                             AS amount,
       'EUR'                                                                                      AS currency,
       at_most(at_least(coalesce(t.amount_with_tax, 0), l.minimum_with_tax), l.maximum_with_tax)  AS amount_with_tax,
       CAST(NULL AS VARCHAR)                                                                      AS name,
       CAST(NULL AS DECIMAL(38, 18))                                                              AS billed
FROM limits l
LEFT JOIN session_totals t ON t.case_id = l.case_id
UNION ALL
SELECT c.case_id, 'part', c.amount, 'EUR', CAST(NULL AS DECIMAL(38, 18)), c.name, c.quantity
FROM component_totals c

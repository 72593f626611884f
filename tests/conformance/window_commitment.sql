-- A commitment per window: usage up to it at its price, what is above it times the overage factor; a true-up bills the
-- whole commitment even when less was used.
--   cost = units * price,   commitment = an amount, or units * price
--   amount = (commitment if true-up, else min(cost, commitment)) + max(0, cost - commitment) * overage factor
CREATE MATERIALIZED VIEW window_commitment
WITH (window = 'year', effective_from = '2000-01-01', fan_out = 'allowed')
AS
WITH costs AS (
    SELECT u.case_id, u.position, u.units * c.price                                                       AS cost,
           coalesce(c.commitment_amount, c.commitment_units * c.price, u.units * c.price)                 AS commitment,
           coalesce(c.overage_factor, 1)                                                                  AS overage_factor,
           coalesce(c.true_up, FALSE)                                                                     AS true_up
    FROM used u
    JOIN commitments c ON c.case_id = u.case_id AND c.rule_name = u.rule_name
),
charged AS (
    SELECT c.case_id, c.position,
           CASE WHEN c.true_up THEN c.commitment ELSE at_most(c.cost, c.commitment) END AS committed,
           overage(c.cost, c.commitment) * c.overage_factor                             AS overage
    FROM costs c
)
SELECT c.case_id                     AS customer_id,
       'total'                       AS item,
       sum(c.committed + c.overage)  AS amount,
       'USD'                         AS currency,
       sum(c.overage)                AS overage,
       CAST(NULL AS BIGINT)          AS position,
       CAST(NULL AS DECIMAL(38, 18)) AS window_amounts
FROM charged c
GROUP BY c.case_id
UNION ALL
SELECT c.case_id, 'part', c.committed + c.overage, 'USD', CAST(NULL AS DECIMAL(38, 18)), c.position,
       c.committed + c.overage AS window_amounts
FROM charged c

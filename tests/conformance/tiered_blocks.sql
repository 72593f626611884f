-- Tiered blocks: units are sold in whole blocks. all_tiers: a tier sells up to its maximum of blocks and hands the rest on,
-- the last tier sells all that is left. top_tier: all units are sold in blocks of the highest tier reached that way.
-- What was already billed is taken off.
CREATE MATERIALIZED VIEW tiered_blocks
WITH (window = 'year', effective_from = '2000-01-01')
AS
WITH steps AS (
    SELECT c.case_id, unnest(block_breakdown(c.units, p.blocks, coalesce(c.policy, 'all_tiers'))) AS step
    FROM cases c
    JOIN prices p ON p.case_id = c.case_id
)
SELECT c.case_id                        AS customer_id,
       'total'                          AS item,
       CAST(NULL AS BIGINT)             AS position,
       tiered_blocks(c.units, p.blocks, coalesce(c.policy, 'all_tiers')) - coalesce(c.already_billed, 0) AS amount,
       CAST(NULL AS DECIMAL(38, 18))    AS tier_amounts,
       'USD'                            AS currency
FROM cases c
JOIN prices p ON p.case_id = c.case_id
UNION ALL
SELECT case_id, 'part', step['tier'], 0, step['amount'], 'USD'
FROM steps

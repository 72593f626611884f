-- Tokens by model, in millions, in tiers over the billing period. The steps stand on the invoice as its detail.
CREATE MATERIALIZED VIEW tokens
WITH (window = 'billing_period', grace = '6 hours', effective_from = '2025-01-01')
AS
SELECT c.customer_id,
       c.contract_id,
       'Tokens ' || u.model                                AS item,
       sum(u.quantity) / 1000000                           AS quantity,
       'million tokens'                                    AS unit,
       graduated(sum(u.quantity) / 1000000, p.tiers)       AS amount,
       c.currency,
       tier_breakdown(sum(u.quantity) / 1000000, p.tiers)  AS detail
FROM usage u
JOIN contracts FOR SYSTEM_TIME AS OF u.time AS c ON c.subject = u.subject
JOIN prices p ON p.plan = c.plan AND p.item = 'tokens-' || u.model
WHERE u.meter = 'tokens'
GROUP BY c.customer_id, c.contract_id, c.currency, u.model, p.tiers

-- Every charge belongs to a contract of its customer and is in its currency.
SELECT c.customer_id, c.contract_id, c.item, c.currency
FROM charges c
WHERE NOT EXISTS (
    SELECT 1 FROM contracts k
    WHERE k.contract_id = c.contract_id AND k.customer_id = c.customer_id AND k.currency = c.currency
)

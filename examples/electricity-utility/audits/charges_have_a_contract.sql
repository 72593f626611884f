-- Every charge belongs to a contract of its customer.
SELECT c.customer_id, c.contract_id, c.item
FROM charges c
WHERE NOT EXISTS (SELECT 1 FROM contracts k WHERE k.contract_id = c.contract_id AND k.customer_id = c.customer_id)

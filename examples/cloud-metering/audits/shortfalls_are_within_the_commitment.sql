-- A shortfall is never more than the whole commitment, corrections included.
SELECT c.contract_id, c.window_start, sum(c.amount) AS shortfall
FROM charges c
JOIN commitments m ON m.contract_id = c.contract_id
WHERE c.item = 'Commitment shortfall'
GROUP BY c.contract_id, c.window_start, m.amount
HAVING sum(c.amount) > m.amount OR sum(c.amount) < 0

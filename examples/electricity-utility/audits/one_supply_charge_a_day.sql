-- Nobody pays the supply charge of a day twice, corrections included.
SELECT c.contract_id, c.window_start, sum(c.quantity) AS days
FROM charges c
WHERE c.item = 'Supply charge'
GROUP BY c.contract_id, c.window_start
HAVING sum(c.quantity) > 1

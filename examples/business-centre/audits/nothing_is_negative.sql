-- No item of a month is worth less than nothing, corrections included.
SELECT c.customer_id, c.item, c.window_start, sum(c.amount) AS amount
FROM charges c
GROUP BY c.customer_id, c.item, c.window_start
HAVING sum(c.amount) < 0

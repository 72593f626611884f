-- The fees of a work and month are royalties and commission, and nothing else.
SELECT c.work, c.window_start, sum(c.amount) AS difference
FROM charges c
GROUP BY c.work, c.window_start
HAVING bool_or(c.item LIKE 'Licence %') AND bool_or(c.item LIKE 'Commission %') AND sum(c.amount) <> 0

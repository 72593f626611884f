-- Every work that was sold has holders of its rights.
SELECT DISTINCT c.work
FROM charges c
WHERE c.item LIKE 'Licence %' AND c.work NOT IN (SELECT s.work FROM shares s)

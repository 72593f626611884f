-- COPY instead of a rule.
COPY (SELECT * FROM usage) TO 'usage.csv'

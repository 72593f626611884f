-- The query of the rule writes.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
INSERT INTO prices SELECT * FROM prices

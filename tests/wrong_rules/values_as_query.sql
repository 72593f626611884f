-- VALUES instead of SELECT.
CREATE MATERIALIZED VIEW pages
WITH (window = 'month', timezone = 'Europe/London', effective_from = '2026-01-01')
AS
VALUES ('acme', 'Pages', 1.00, 'GBP')

-- DROP instead of effective_to.
DROP MATERIALIZED VIEW pages

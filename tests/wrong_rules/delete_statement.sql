-- DELETE instead of a rule.
DELETE FROM usage WHERE meter = 'printed_page'

"""The versions of the database's schema; `processors.store.migrate` runs them."""

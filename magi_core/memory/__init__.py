"""Where weights and caches live."""

"""The page: what has run (``results``), its tables (``tables``, ``contrasts``, ``claims``), plots, their assembly."""

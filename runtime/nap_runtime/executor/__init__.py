"""Where workers live: in this process (`inline`) or on a Ray cluster (`ray_executor`, the only importer of Ray)."""

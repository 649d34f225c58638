"""What a correct kernel may be off by: row by row from an ensemble of valid orders, and a hard bound above that."""

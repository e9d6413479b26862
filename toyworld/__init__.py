"""A world of drawings whose contents are known: it trains the toy, judges pictures of it and measures the method."""

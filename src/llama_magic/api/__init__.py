"""The public functions and the session they share; everything above calls nothing beneath it."""

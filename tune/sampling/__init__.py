"""Which configurations are tried: domains of settings, default spaces, and who draws the next."""

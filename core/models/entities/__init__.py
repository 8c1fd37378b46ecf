"""Models that align entities, besides MCLEA and MEAformer."""

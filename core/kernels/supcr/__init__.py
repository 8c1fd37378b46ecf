"""SupCR's fused path: rows grouped by label, then the fastest exact way on this device."""

"""What a run leaves for people: log, plots, report, provenance."""

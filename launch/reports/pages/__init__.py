"""Pages of runs, comparisons and studies: each one HTML file that needs nothing else, neither a
network nor a script."""

"""Files that somebody else made, and places to write to: opened by kind, counted before they are
read."""

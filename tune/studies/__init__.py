"""Studies: rows by seeds by data sets, trained one after the other, and the table that they give."""

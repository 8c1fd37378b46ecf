"""One file per model, one function per data set; ``RECIPES`` in each file names them."""

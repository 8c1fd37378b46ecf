"""In-batch softmaxes on a GPU: what ICL, IAL and SupCon are made of, in linear memory."""

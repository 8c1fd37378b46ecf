"""What is trained on what: data, batches, scores and predictions of each task."""

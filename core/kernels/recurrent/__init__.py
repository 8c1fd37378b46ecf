"""GRUs and LSTMs on a CPU: one compiled loop per layer in place of a dozen operators a frame."""

"""The processes of a trial: started, watched, and ended with everything they started."""

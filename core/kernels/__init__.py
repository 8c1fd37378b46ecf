"""Fast paths behind the losses; nothing here imports the rest of the project."""

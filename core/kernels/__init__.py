"""Fast paths behind the losses. Of the rest of the project they import only what chooses the
folder for compiled code."""

"""The doors of the project as the fuzz suite opens them; each module has ``open_door(scratch)``."""

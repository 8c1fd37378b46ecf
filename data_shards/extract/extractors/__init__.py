"""What turns sound, pictures and speech into frames; ``registry.py`` lists all of them."""

"""Loss functions: each file holds a plain definition and the module that models use."""

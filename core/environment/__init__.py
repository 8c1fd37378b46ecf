"""What a program finds around it: folders that it may write to, and credentials that it must not
tell."""

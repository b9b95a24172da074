"""What all families share: the interfaces that training methods use, and their common parts."""

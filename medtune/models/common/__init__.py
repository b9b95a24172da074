"""Code that all model families share: the interfaces that training methods use, and common components."""

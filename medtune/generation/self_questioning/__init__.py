"""Self-questioning: a policy describes images, asks about them, and answers each question twice (STLLaVA-Med)."""

"""FLARE's seven tasks scored: answers read into a value or a named reason, metrics, published definitions."""

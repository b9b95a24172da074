"""What one client may ask of the server, and for how long."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Limits of requests; a request beyond one is refused with an error that names it.

    Attributes:
        body_mb: Size of a request's body.
        body_seconds: Time in which a body must have arrived.
        images: Images of one request.
        image_seconds: Time in which an image must have arrived from its address, if addresses are allowed.
        pixels: Width times height of one image.
        max_tokens: Tokens that one request may ask for.
        queue: Requests that wait for a row; further ones get status 429.
        seconds: Time from a request's arrival to the end of its answer.
        write_seconds: Time in which a client must take what it is sent.
        connections: Connections at the same time; further ones get status 503.
        stop_seconds: Time that requests get to end after the server was told to stop.
    """

    body_mb: float = field(default=32.0, metadata={"help": "size of a request's body"})
    body_seconds: float = field(default=30.0, metadata={"help": "time in which a body must have arrived"})
    images: int = field(default=8, metadata={"help": "images of one request"})
    image_seconds: float = field(default=10.0, metadata={"help": "to fetch one image, if addresses are allowed"})
    pixels: int = field(default=25_000_000, metadata={"help": "width times height of one image"})
    max_tokens: int = field(default=1024, metadata={"help": "tokens that one request may ask for"})
    queue: int = field(default=128, metadata={"help": "requests that wait; further ones get status 429"})
    seconds: float = field(default=300.0, metadata={"help": "from a request's arrival to the end of its answer"})
    write_seconds: float = field(default=60.0, metadata={"help": "time in which a client must take what it is sent"})
    connections: int = field(default=1024, metadata={"help": "connections at a time; further ones get status 503"})
    stop_seconds: float = field(default=30.0, metadata={"help": "time to end after the server was told to stop"})

    def __post_init__(self) -> None:
        """Refuse limits that would refuse everything."""
        for name, value in vars(self).items():
            least = 0 if name in ("images", "stop_seconds") else 1e-3
            if not value >= least:
                raise ValueError(f"limits.{name} must be at least {least:g}, got {value}")

    @property
    def body_bytes(self) -> int:
        """Size of a request's body in bytes."""
        return int(self.body_mb * 1e6)

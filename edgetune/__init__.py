"""edgetune: a service that prunes and fine-tunes a served CNN to the images its board sees."""

__version__ = "0.1.0"

"""Harvest: turn an image-text foundation model into a video-language foundation model, cheaply, and use it."""

__version__ = "0.1.0"

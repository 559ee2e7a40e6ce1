"""`harvest demo`: the whole method in minutes, and the page that shows what it did."""

from harvest.demo.run import run_demo

__all__ = ["run_demo"]

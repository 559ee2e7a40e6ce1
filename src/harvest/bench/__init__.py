"""How fast this machine trains: `harvest bench step` and `harvest bench tokens`."""

"""The error of a configuration that cannot work."""


class ConfigError(ValueError):
    """A configuration that cannot work. The message names the field, its value and what would be right."""

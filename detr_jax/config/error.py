"""The errors of configurations."""


class ConfigError(ValueError):
    """A configuration that cannot work. The message names the field, its value and what would be right."""


class DamagedConfigError(ConfigError):
    """A text that is not a configuration at all, such as a file that was cut off."""

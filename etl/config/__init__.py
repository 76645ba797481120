"""The configuration: settings.py declares it, load.py reads it."""

from etl.config.load import (
    CONFIG_ENV,
    ENV_PREFIX,
    TOKEN_ENV,
    is_loopback,
    load_config,
    load_monitoring,
)
from etl.config.settings import (
    SECTIONS,
    Api,
    Config,
    Database,
    Log,
    Monitoring,
    PhoneNumber,
    SecretUrl,
    Sync,
    Token,
)

__all__ = [
    "CONFIG_ENV",
    "ENV_PREFIX",
    "SECTIONS",
    "TOKEN_ENV",
    "Api",
    "Config",
    "Database",
    "Log",
    "Monitoring",
    "PhoneNumber",
    "SecretUrl",
    "Sync",
    "Token",
    "is_loopback",
    "load_config",
    "load_monitoring",
]

"""The configuration: settings.py declares it, load.py reads it, secrets.py its secrets."""

from etl.config.load import (
    CONFIG_ENV,
    ENV_PREFIX,
    is_loopback,
    load_config,
    load_monitoring,
)
from etl.config.secrets import KEY_ENV, TOKEN_ENV
from etl.config.settings import (
    SECTIONS,
    Api,
    Config,
    Database,
    Log,
    Monitoring,
    Participants,
    PhoneNumber,
    Privacy,
    PrivacyKey,
    SecretUrl,
    Sync,
    Token,
)

__all__ = [
    "CONFIG_ENV",
    "ENV_PREFIX",
    "KEY_ENV",
    "SECTIONS",
    "TOKEN_ENV",
    "Api",
    "Config",
    "Database",
    "Log",
    "Monitoring",
    "Participants",
    "PhoneNumber",
    "Privacy",
    "PrivacyKey",
    "SecretUrl",
    "Sync",
    "Token",
    "is_loopback",
    "load_config",
    "load_monitoring",
]

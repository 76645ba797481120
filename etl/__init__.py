"""linq-etl keeps the chats of Linq phone numbers in a SQL database."""

__version__ = "0.1.0"

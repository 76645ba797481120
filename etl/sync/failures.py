"""What the run log and the exit code say of an error."""

from etl.errors import EtlError


def kind_of(error: Exception) -> str:
    return error.kind if isinstance(error, EtlError) else EtlError.kind


def sentence_of(error: Exception) -> str:
    # The text of a foreign error may hold people's data.
    return str(error) if isinstance(error, EtlError) else f"unexpected {type(error).__name__}"


def code_of(error: Exception) -> int:
    return error.exit_code if isinstance(error, EtlError) else EtlError.exit_code


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the run; the others in the group follow from it."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first

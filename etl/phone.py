"""Phone numbers: E.164 inside, digits to the API, shortened in logs."""

import re

import phonenumbers


def to_e164(text: str) -> str:
    """Normalise a number that a person wrote; without country code it is a US number.

    The US default is Linq's rule. Only the length is checked, because the API accepts new area
    codes and reserved 555 numbers. Raises ValueError with what to write instead.
    """
    hint = "write it with country code, e.g. +13343284472"
    try:
        # The library would convert letters, and the digits of other scripts, to digits, and skip
        # text before the number.
        if not re.fullmatch(r"\s*[+(0-9][0-9\s().-]*", text):
            raise ValueError(f"that is not a phone number; {hint}")
        number = phonenumbers.parse(text, "US")
    except phonenumbers.NumberParseException:
        raise ValueError(f"that is not a phone number; {hint}") from None
    possible = phonenumbers.is_possible_number_with_reason(number)
    if possible != phonenumbers.ValidationResult.IS_POSSIBLE:
        raise ValueError(f"that is not a complete phone number; {hint}")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def e164_or_none(text: str) -> str | None:
    """Normalise what the API sent; None if it is not a phone number, such as a mail address."""
    try:
        return to_e164(text)
    except ValueError:
        return None


def to_digits(phone_number: str) -> str:
    """E.164 without its plus, as the API expects it: in a query, a plus means a space."""
    return phone_number.removeprefix("+")


def shortened(phone_number: str) -> str:
    """The last four digits, `…4472`: enough to recognise one's own number in a log."""
    return "…" + phone_number[-4:]


def named(phone_number: str, label: str | None) -> str:
    """A number as logs name it: its label, if any, and its last four digits."""
    return f"{label} {shortened(phone_number)}" if label else shortened(phone_number)

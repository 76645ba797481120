"""Phone numbers: E.164 inside, digits to the API, shortened in logs."""

import re

import phonenumbers


def to_e164(text: str) -> str:
    """Normalise a number as a person writes it, assuming the US where no country is given.

    The US default is Linq's own rule. Only the length is checked: new area codes and the
    reserved 555 numbers are for the API to judge. Raises ValueError with what to write instead.
    """
    hint = "write it with country code, e.g. +13343284472"
    try:
        # The library would take letters for digits, and skip what stands before the number.
        if not re.fullmatch(r"\s*[+(\d][\d\s().-]*", text):
            raise ValueError(f"that is not a phone number; {hint}")
        number = phonenumbers.parse(text, "US")
    except phonenumbers.NumberParseException:
        raise ValueError(f"that is not a phone number; {hint}") from None
    possible = phonenumbers.is_possible_number_with_reason(number)
    if possible != phonenumbers.ValidationResult.IS_POSSIBLE:
        raise ValueError(f"that is not a complete phone number; {hint}")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def e164_or_none(text: str) -> str | None:
    """The same for a number that the API sent, which may be none."""
    try:
        return to_e164(text)
    except ValueError:
        return None


def to_digits(phone_number: str) -> str:
    """The form in which the API takes an E.164 number: without plus, which a query would eat."""
    return phone_number.removeprefix("+")


def shortened(phone_number: str) -> str:
    """Enough to recognise one's own number in a log, too little to call it: `…4472`."""
    return "…" + phone_number[-4:]

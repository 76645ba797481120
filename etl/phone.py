"""Phone numbers: E.164 inside, digits to the API, shortened in logs."""

import phonenumbers


def to_e164(text: str) -> str:
    """Normalise a number as a person writes it, assuming the US where no country is given.

    The US default is Linq's own rule. Only the length is checked: new area codes and the
    reserved 555 numbers are for the API to judge. Raises ValueError with what to write instead.
    """
    hint = "write it with country code, e.g. +13343284472"
    try:
        number = phonenumbers.parse(text, "US")
    except phonenumbers.NumberParseException:
        raise ValueError(f"{text!r} is not a phone number; {hint}") from None
    if not phonenumbers.is_possible_number(number) or number.extension:
        raise ValueError(f"{text!r} is not a complete phone number; {hint}")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def to_digits(phone_number: str) -> str:
    """The form in which the API takes an E.164 number: without plus, which a query would eat."""
    return phone_number.removeprefix("+")


def shortened(phone_number: str) -> str:
    """Enough to recognise one's own number in a log, too little to call it: `…4472`."""
    return "…" + phone_number[-4:]

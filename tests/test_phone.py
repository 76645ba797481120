"""Phone numbers: what people write, what the API is sent, what a log shows."""

import pytest

from etl.phone import e164_or_none, shortened, to_digits, to_e164


@pytest.mark.parametrize(
    "written",
    [
        "+13343284472",
        "13343284472",
        "3343284472",
        "334-328-4472",
        "(334) 328-4472",
        "+1 334.328.4472",
        " +13343284472\n",
    ],
)
def test_every_spelling_of_a_number_is_the_same_number(written: str) -> None:
    """A number becomes E.164 however it is written; without a country code it is a US number."""
    assert to_e164(written) == "+13343284472"


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("+442079460958", "+442079460958"),
        ("+44 20 7946 0958", "+442079460958"),
        ("011 44 20 7946 0958", "+442079460958"),
        ("+49 30 123456", "+4930123456"),
    ],
)
def test_a_country_code_is_kept(written: str, number: str) -> None:
    """A number with another country's code stays in that country."""
    assert to_e164(written) == number


@pytest.mark.parametrize("reserved", ["+15551234567", "+13125550100"])
def test_a_number_is_judged_by_its_length_alone(reserved: str) -> None:
    """Numbers that no carrier has assigned are for the API to refuse, not for us."""
    assert to_e164(reserved) == reserved


@pytest.mark.parametrize(
    "written",
    [
        "",
        "+",
        "abc",
        "jane@example.com",
        "0",
        "334328447213343284472133",
        "tel:+13343284472",
        "call 334-328-4472",
        "1-800-FLOWERS",
        "334-FLOWERS",
        "+13343284472 ext 5",
        "+13343284472;ext=5",
        "+13343284472, +13125550100",
        "3343284472\n+13125550100",
    ],
)
def test_what_is_no_number_is_refused(written: str) -> None:
    """Text that is more than one number, or none, is an error that says what to write."""
    with pytest.raises(ValueError, match=r"is not a phone number; .* e\.g\. \+13343284472$"):
        to_e164(written)


@pytest.mark.parametrize(
    "written",
    ["12345", "911", "328-4472", "(334", "001 1 334", "+1 334", "+1334328447", "+1334328447234"],
)
def test_an_incomplete_number_is_refused(written: str) -> None:
    """Digits missing, as the area code's, or too many are an error that says what to write."""
    with pytest.raises(ValueError, match=r"is not a complete phone number; .* \+13343284472$"):
        to_e164(written)


@pytest.mark.parametrize("written", ["sk-live-4f9a", "sk-3343284472", "334-328"])
def test_an_error_does_not_repeat_what_was_written(written: str) -> None:
    """What stands in a number's place may be a token, so it is not in the error."""
    with pytest.raises(ValueError, match="phone number") as raised:
        to_e164(written)

    assert written not in str(raised.value)


@pytest.mark.parametrize(
    ("sent", "number"),
    [("13343284472", "+13343284472"), ("+442079460958", "+442079460958")],
)
def test_a_number_that_the_api_sent(sent: str, number: str) -> None:
    """The API's spellings become E.164 as well."""
    assert e164_or_none(sent) == number


@pytest.mark.parametrize("sent", ["", "jane@example.com", "328-4472", "12345"])
def test_what_the_api_sent_may_be_no_number(sent: str) -> None:
    """A mail address or a short code is no number, which is no error."""
    assert e164_or_none(sent) is None


def test_the_api_gets_digits() -> None:
    """A plus in a query is a space, so the API gets the number without it."""
    assert to_digits("+13343284472") == "13343284472"


def test_a_log_gets_the_last_digits() -> None:
    """A log shows four digits of a number."""
    assert shortened("+13343284472") == "…4472"

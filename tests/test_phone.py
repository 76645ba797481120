"""Phone numbers as people write them, as the API sends and gets them, as a log shows them."""

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
    """Every spelling becomes the same E.164; without a country code it is a US number."""
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
    """A number with a foreign country code keeps it."""
    assert to_e164(written) == number


@pytest.mark.parametrize("reserved", ["+15551234567", "+13125550100"])
def test_a_number_is_judged_by_its_length_alone(reserved: str) -> None:
    """Unassigned numbers are accepted; only the API can refuse them."""
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
def test_other_text_is_refused(written: str) -> None:
    """The error for text that is not exactly one number says what to write."""
    with pytest.raises(ValueError, match=r"is not a phone number; .* e\.g\. \+13343284472$"):
        to_e164(written)


@pytest.mark.parametrize(
    "written",
    ["12345", "911", "328-4472", "(334", "001 1 334", "+1 334", "+1334328447", "+1334328447234"],
)
def test_an_incomplete_number_is_refused(written: str) -> None:
    """The error for a number with too few or too many digits says what to write."""
    with pytest.raises(ValueError, match=r"is not a complete phone number; .* \+13343284472$"):
        to_e164(written)


@pytest.mark.parametrize("written", ["sk-live-4f9a", "sk-3343284472", "334-328"])
def test_an_error_does_not_repeat_what_was_written(written: str) -> None:
    """The error does not show the text, which may be a misplaced token."""
    with pytest.raises(ValueError, match="phone number") as raised:
        to_e164(written)

    assert written not in str(raised.value)


@pytest.mark.parametrize(
    ("sent", "number"),
    [("13343284472", "+13343284472"), ("+442079460958", "+442079460958")],
)
def test_a_number_that_the_api_sent(sent: str, number: str) -> None:
    """The API's spellings become E.164 too."""
    assert e164_or_none(sent) == number


@pytest.mark.parametrize("sent", ["", "jane@example.com", "328-4472", "12345"])
def test_the_api_may_send_other_things_than_numbers(sent: str) -> None:
    """A mail address or a short code gives None, not an error."""
    assert e164_or_none(sent) is None


def test_the_api_gets_digits() -> None:
    """The API gets the number without plus, which in a query would mean a space."""
    assert to_digits("+13343284472") == "13343284472"


def test_a_log_gets_the_last_digits() -> None:
    """A log shows the last four digits of a number."""
    assert shortened("+13343284472") == "…4472"

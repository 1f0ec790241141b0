"""What an error of the Hub must not show."""

from intel_ft.hub.secrets import redact


def test_the_users_token_and_signatures_are_redacted():
    token = "an-unusual-token"  # of no kind that the patterns know
    text = f"403 for {token} at https://example.org/file?signature=abc"
    assert redact(text, token) == "403 for *** at https://example.org/file?***"
    assert token in redact(text, None)

"""Asking a model: recognising what was given, generating, evaluating and chatting with it."""

"""Every error crosses process borders unchanged, and no message shows a password."""

from __future__ import annotations

import pickle

import pytest

from orchestrator import errors
from orchestrator.errors import CampaignError, redact_uri

EXAMPLES = [
    errors.CampaignError("no"),
    errors.SpecError("spec.yaml", 3, ["spec.yaml:3: one", "spec.yaml:5: two"]),
    errors.SpecError("spec.yaml", None, []),
    errors.DataError("no rows"),
    errors.ModelError("no such type"),
    errors.TrackingError("server away"),
    errors.StorageError("disk full"),
    errors.ClusterError("no head"),
    errors.TrialError("loss is NaN", key="abc"),
    errors.TrialError("loss is NaN"),
    errors.DivergedError("loss is NaN, again", key="abc"),
    errors.StoppedError(0.5, "place 3 of 4", 120),
    errors.RegistryError("no alias"),
    errors.PromotionError("fleet-sst", ["speedup >= 1.2, got 1.1", "bytes < 1, got 2"]),
]


def test_the_examples_cover_every_class():
    classes = {c for c in vars(errors).values() if isinstance(c, type)}
    assert {c for c in classes if issubclass(c, CampaignError)} == {type(e) for e in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_survives_pickling(error):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_exit_code_blames_the_input_or_not(error):
    at_fault = isinstance(error, errors.SpecError | errors.DataError | errors.ModelError)
    assert error.exit_code == (2 if at_fault else 1)


def test_messages():
    assert str(errors.SpecError("f", 3, ["a", "b"])) == "a\nb"
    assert str(errors.TrialError("NaN", key="k")) == "trial k: NaN"
    assert str(errors.PromotionError("m", ["x", "y"])) == "m was not promoted: x; y"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://me:pw@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql+psycopg://me:p@w@host/db", "postgresql+psycopg://***@host/db"),
        ("postgresql://me:p/w@host/db", "postgresql://***@host/db"),
        ("mysql://me:p?w@host/db", "mysql://***@host/db"),
        ("https://token@host/", "https://***@host/"),
        ("https://host/?password=pw&x=1", "https://host/?password=***&x=1"),
        ("https://host/?access_token=pw", "https://host/?access_token=***"),
        ("cannot reach ftp://a:b@c and ftp://d:e@f", "cannot reach ftp://***@c and ftp://***@f"),
        ("https://host:5000/a@b", "https://host:5000/a@b"),
        ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("runs", "runs"),
        ("1http://me:pw@host", "1http://***@host"),
        (f"https://me:{'t' * 3000}@host", "https://***@host"),
        (f"https://host/?{'x' * 100}_token={'t' * 9000}", f"https://host/?{'x' * 100}_token=***"),
    ],
)
def test_redact_uri(uri, shown):
    assert redact_uri(uri) == shown


@pytest.mark.parametrize("part", ["x", "://", "a://", "?", "?password", "http://a:b", "&token"])
def test_a_long_text_is_looked_through_in_one_pass(part: str):
    """With a quadratic pattern each of these takes minutes."""
    text = part * (100_000 // len(part))
    assert "***" not in redact_uri(text)

from __future__ import annotations

import math

import pytest

from lowrank.metrics import bits_per_character, perplexity


@pytest.mark.parametrize("vocabulary", [2, 50, 50257])
def test_the_perplexity_of_a_uniform_model_is_its_vocabulary(vocabulary):
    assert perplexity(10 * math.log(vocabulary), 10) == pytest.approx(vocabulary)


def test_perplexity_is_per_what_is_counted():
    # 30 nats over 12 tokens of 10 words
    assert perplexity(30.0, 12) == pytest.approx(math.exp(2.5))
    assert perplexity(30.0, 10) == pytest.approx(math.exp(3.0))
    assert perplexity(0.0, 5) == 1


@pytest.mark.parametrize("mean", [710.0, 1e300, math.inf])
def test_perplexity_is_infinite_on_overflow(mean):
    assert perplexity(mean, 1) == math.inf


def test_perplexity_does_not_hide_what_is_not_a_number():
    assert math.isnan(perplexity(math.nan, 3))
    assert perplexity(709.0, 1) == pytest.approx(math.exp(709.0))


@pytest.mark.parametrize("symbols", [2, 27, 256])
def test_the_bits_of_a_uniform_model_are_the_logarithm_of_its_symbols(symbols):
    assert bits_per_character(7 * math.log(symbols), 7) == pytest.approx(math.log2(symbols))

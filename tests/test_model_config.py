"""What the configuration refuses, and what it keeps."""

import pytest

from emu.model import EmuConfig


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 32"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "must be even"),
        ({"num_hidden_layers": 0}, "expected a positive"),
        ({"residual_dropout": 1.0}, "expected 0 <= p < 1"),
        ({"qk_norm": "yes"}, "qk_norm"),
        ({"eos_token_id": 200000}, "outside the vocabulary"),
        ({"vocabulary": {"size": 5}}, "must agree"),
        ({"hiden_size": 64}, "did you mean 'hidden_size'"),
    ],
    ids=str,
)
def test_bad_fields_are_refused_by_name(fields, words):
    with pytest.raises(ValueError, match=words):
        EmuConfig(**fields)


def test_the_defaults_are_those_of_emu3():
    config = EmuConfig(num_key_value_heads=8)
    assert (config.head_dim, config.rope_parameters["rope_theta"], config.qk_norm) == (128, 1e6, False)


def test_a_configuration_survives_its_file(tmp_path):
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 123.0}
    config = EmuConfig(hidden_size=96, num_attention_heads=3, head_dim=16, rope_parameters=rope, eos_token_id=[1, 2])
    config.save_pretrained(tmp_path)
    again = EmuConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.rope_theta == 123.0 and again.num_key_value_heads == 3

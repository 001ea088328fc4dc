"""Runs movq_diffusers.py where diffusers is installed, which vqim does not ask for."""
import pytest

pytest.importorskip("diffusers")


def test_a_modulated_decoder_is_diffusers_layer_by_layer(capsys):
    from tests.peers import movq_diffusers

    movq_diffusers.main()
    assert "parameters at Kandinsky's widths: diffusers 67,832,495, ours 67,832,495" in capsys.readouterr().out

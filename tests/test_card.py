"""pipeline/merging/card.py: what the merged model's card says, and what it leaves out."""
from pathlib import Path

from pipeline.merging.card import model_card

LORA = {"r": 4, "lora_alpha": 8}


def test_card_names_what_is_on_the_hub_and_no_local_paths(tmp_path: Path) -> None:
    """The card of a published model hides its base and its data, or tells paths of the machine."""
    manifest = {"arguments": {"dataset": "owner/data", "seed": 3},
                "summary": {"validation_loss_before": 2.0, "validation_loss_after": 1.0}}
    card = model_card("owner/model", "owner/base", "nf4", LORA, manifest)
    for line in ("base_model: owner/base", "- owner/data", "| seed | 3 |",
                 "| validation loss after (nats a token) | 1.0000 |"):
        assert line in card.splitlines()
    assert 'from_pretrained("owner/model")' in card
    assert "as NF4 quantizes them" in card
    manifest["arguments"]["dataset"] = str(tmp_path)
    local = model_card("owner/model", str(tmp_path), "checkpoint", LORA, manifest)
    assert str(tmp_path) not in local
    assert "base_model:" not in local
    assert "datasets:" not in local
    assert "NF4" not in local
    assert "(rank 4, alpha 8)" in model_card("owner/model", "owner/base", "checkpoint", LORA, None)

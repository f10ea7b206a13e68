"""pipeline/training/loss.py: the loss at labelled positions alone, against that of the full logits."""
import pytest
import tiny_models
import torch
from training_runs import encoded_rows

from pipeline.model.padding import right_padded
from pipeline.training import loss
from pipeline.training.loss import CrossEntropyInPlace, sum_of_losses

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_full_logits(architecture: str) -> None:
    """Computing the head at labelled positions alone changes what is learned."""
    model = tiny_models.make_model(architecture)
    rows = encoded_rows()
    batch = right_padded(rows, tiny_models.make_tokenizer().eos_token_id)
    count, longest = len(batch["targets"]), batch["input_ids"].shape[1]
    mask = torch.tensor([[int(i < len(row["input_ids"])) for i in range(longest)] for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows])
    assert count == (labels[:, 1:] != -100).sum()
    expected = model(input_ids=batch["input_ids"], attention_mask=mask, labels=labels).loss
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = sum_of_losses(model, model, batch) / count
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6,
                                   msg=lambda text, name=name: f"{name}: {text}")
    # the hook on the head is gone
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_logits_that_are_needed_again_are_not_overwritten_unseen() -> None:
    """In a model whose logits its own backward pass needs, the gradients are silently wrong."""
    hidden = torch.randn(3, 8, requires_grad=True)
    targets = torch.tensor([1, 2, 3])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        CrossEntropyInPlace.apply(torch.tanh(hidden), targets).backward()
    capped = (4 * torch.tanh(hidden)) * 1.0  # as in models with a soft cap
    CrossEntropyInPlace.apply(capped, targets).backward()
    found, hidden.grad = hidden.grad, None
    torch.nn.functional.cross_entropy(4 * torch.tanh(hidden), targets, reduction="sum").backward()
    torch.testing.assert_close(found, hidden.grad)


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_the_head_in_pieces_gives_the_same_loss_and_gradients(architecture: str,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """With more labels than a piece holds, something else is learned; or the memory grows with them."""
    model = tiny_models.make_model(architecture, tied=False)
    model.get_output_embeddings().requires_grad_(False)
    batch = right_padded(encoded_rows(), tiny_models.make_tokenizer().eos_token_id)
    (0.5 * sum_of_losses(model, model, batch)).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    pieces: list[int] = []
    head = type(model.get_output_embeddings())
    whole_head = head.forward
    monkeypatch.setattr(head, "forward", lambda self, x: (
        pieces.append(len(x)) if self is model.get_output_embeddings() else None, whole_head(self, x))[1])
    monkeypatch.setattr(loss, "HEAD_PIECE_ROWS", 4)
    found = sum_of_losses(model, model, batch)
    (0.5 * found).backward()
    assert len(pieces) == -(-len(batch["targets"]) // 4)
    assert max(pieces) == 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert sum_of_losses(model, model, batch).item() == pytest.approx(found.item())
    assert model(input_ids=batch["input_ids"]).logits.shape[:2] == batch["input_ids"].shape


def test_logits_that_are_bounded_behind_the_head_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with a soft cap on its logits (Gemma 2) learns from logits without it."""
    model = tiny_models.make_model("llama")
    batch = right_padded(encoded_rows(), tiny_models.make_tokenizer().eos_token_id)
    expected = sum_of_losses(model, model, batch)
    monkeypatch.setattr(loss, "HEAD_PIECE_ROWS", 4)
    monkeypatch.setattr(loss.HeadAndCrossEntropy, "apply", None)
    model.config.final_logit_softcapping = 30.0
    assert sum_of_losses(model, model, batch).item() == expected.item()

"""pipeline/training/loss.py: the loss at labelled positions alone, against that of the full logits."""
import pytest
import tiny_models
import torch
from training_runs import encoded_rows

from pipeline.models import right_padded
from pipeline.training.loss import CrossEntropyInPlace, sum_of_losses

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_loss_and_gradients_are_those_of_the_full_logits(architecture: str) -> None:
    """Computing the head at labelled positions alone changes what is learned."""
    model = tiny_models.make_model(architecture)
    rows = encoded_rows()
    batch = right_padded(rows, tiny_models.make_tokenizer().eos_token_id)
    count, longest = int((batch["labels"] != -100).sum()), batch["input_ids"].shape[1]
    mask = torch.tensor([[int(i < len(row["input_ids"])) for i in range(longest)] for row in rows])
    expected = model(**batch, attention_mask=mask).loss
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

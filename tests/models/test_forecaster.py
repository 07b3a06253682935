import pytest
import torch

from heterodox.layers import HEADS, FourierHead
from heterodox.models.forecaster import Forecaster
from heterodox.training.seeding import seeded


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_those_of_the_last_tokens(head):
    model = Forecaster(20, width=16, layers=1, heads=2, length=8, head=head)
    tokens = torch.randint(20, (3, 8))
    logits, penalty = model(tokens, last=8)
    assert logits.shape == (3, 8, 20) and penalty.item() == 0
    torch.testing.assert_close(model(tokens, last=2)[0], logits[:, 6:])


def test_the_head_does_not_change_the_start_of_the_trunk():
    trunks = []
    for head in HEADS:
        with seeded(0):
            model = Forecaster(20, width=16, layers=1, heads=2, length=8, head=head)
        trunks.append(model.decoder.state_dict())
    for trunk in trunks[1:]:
        assert all(torch.equal(trunk[name], x) for name, x in trunks[0].items())


def test_the_penalty_is_that_of_the_head_over_the_last_tokens():
    def head(features, bins):
        return FourierHead(features, bins, 4, regularization=1.0)

    model = Forecaster(20, width=16, layers=1, heads=2, length=8, head=head)
    tokens = torch.randint(20, (3, 8))
    _, penalty = model(tokens, last=3)
    hidden = model.decoder(tokens)[:, -3:]
    torch.testing.assert_close(penalty, model.head(hidden, return_penalty=True)[1])
    assert penalty.item() > 0


def test_logits_do_not_depend_on_later_tokens():
    model = Forecaster(20, width=16, layers=1, heads=2, length=8, head="fourier")
    tokens = torch.randint(20, (1, 8))
    logits, _ = model(tokens, last=8)
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 20
    again, _ = model(changed, last=8)
    torch.testing.assert_close(again[:, :5], logits[:, :5])
    assert not torch.allclose(again[:, 5:], logits[:, 5:])

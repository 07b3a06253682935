"""The recipe: what is trained, in which mode, how long, and what is left behind."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heterodox.learning.hyperfitting import hyperfit
from heterodox.models.transformer import DecoderLM
from heterodox.training.seeding import seeded


def decoder(attention="softmax"):
    with seeded(0):
        return DecoderLM(17, 16, 2, 2, 12, attention=attention)


def sample(count=6, length=9):
    return torch.randint(17, (count, length), generator=torch.Generator().manual_seed(1))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_one_epoch_of_one_batch_is_one_step_of_adam_on_the_mean_loss():
    model, expected, tokens = decoder(), decoder(), sample()
    history = hyperfit(model, tokens, epochs=1, lr=1e-2, batch_size=6)
    adam = torch.optim.Adam(expected.parameters(), lr=1e-2)
    log_p = expected(tokens)[:, :-1].log_softmax(-1)
    loss = -log_p.gather(-1, tokens[:, 1:, None]).mean()
    loss.backward()
    adam.step()
    assert history.train_loss == [pytest.approx(loss.item(), rel=1e-5)]
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_loss_falls_until_the_sample_is_known_by_heart():
    model, tokens = decoder(), sample()
    history = hyperfit(model, tokens, epochs=300, lr=1e-2, target_loss=0.05)
    assert history.stopped and not history.diverged
    assert history.train_loss[-1] <= 0.05 < history.train_loss[-2]
    assert history.train_loss[0] > 2
    model.eval()
    with torch.no_grad():
        right = model(tokens[:, :-1]).argmax(-1) == tokens[:, 1:]
    # All but what cannot be known from the first token.
    assert right[:, 2:].float().mean() > 0.95


def test_the_last_weights_are_kept():
    model, seen = decoder(), []
    hyperfit(model, sample(), epochs=3, lr=0.3, callback=lambda *_: seen.append(state(model)))
    assert same(state(model), seen[-1]) and not same(seen[-1], seen[-2])


def test_the_seed_decides_the_order_and_nothing_else_does():
    results = []
    for seed in (0, 0, 1):
        model = decoder()
        torch.rand(3)  # the global generator is somewhere else each time
        hyperfit(model, sample(), epochs=2, lr=1e-2, batch_size=2, seed=seed)
        results.append(state(model))
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    hyperfit(WithDropout(), sample(), epochs=2, lr=1e-2)
    assert torch.equal(torch.get_rng_state(), before)


class WithDropout(nn.Module):
    """Drops in a layer, inside a recurrence and by a rate that it keeps itself."""

    def __init__(self):
        super().__init__()
        with seeded(0):
            self.embedding = nn.Embedding(17, 8)
            self.rnn = nn.GRU(8, 8, num_layers=2, dropout=0.4, batch_first=True)
            self.out = nn.Linear(8, 17)
        self.layer = nn.Dropout(0.3)
        self.attention_dropout = 0.2
        self.seen = []

    def forward(self, tokens):
        rates = (self.layer.p, self.rnn.dropout, self.attention_dropout)
        self.seen.append((self.training, rates))
        x = F.dropout(self.embedding(tokens), self.attention_dropout, self.training)
        return self.out(self.layer(self.rnn(x)[0]))


def test_dropout_is_off_while_training_and_back_afterwards():
    model = WithDropout()
    hyperfit(model, sample(), epochs=2, lr=1e-2, batch_size=3)
    asked, *trained = model.seen
    assert asked[0] is False
    assert trained == [(True, (0.0, 0.0, 0.0))] * 4
    assert (model.layer.p, model.rnn.dropout, model.attention_dropout) == (0.3, 0.4, 0.2)


def test_every_module_gets_its_own_mode_back():
    model = WithDropout().train()
    model.layer.eval()
    modes = {}
    hyperfit(
        model,
        sample(),
        epochs=1,
        lr=1e-2,
        callback=lambda *_: modes.update(inside=(model.training, model.layer.training)),
    )
    assert modes["inside"] == (model.training, model.layer.training) == (True, False)


def test_modes_and_rates_come_back_after_an_error():
    model = WithDropout().eval()

    def broken(output):
        if len(model.seen) > 1:
            raise RuntimeError("broken")
        return output

    with pytest.raises(RuntimeError, match="broken"):
        hyperfit(model, sample(), lr=1e-2, logits=broken)
    assert (model.layer.p, model.training, model.rnn.training) == (0.3, False, False)


def test_frozen_weights_stay():
    model = decoder()
    model.blocks[0].requires_grad_(False)
    frozen, free = state(model.blocks[0]), state(model.blocks[1])
    hyperfit(model, sample(), epochs=1, lr=1e-2)
    assert same(state(model.blocks[0]), frozen) and not same(state(model.blocks[1]), free)


def test_an_incomplete_batch_is_left_out_and_a_large_one_is_cut():
    calls = []
    model = decoder()
    model.register_forward_hook(lambda module, args, output: calls.append(tuple(args[0].shape)))
    hyperfit(model, sample(5), epochs=2, lr=1e-3, batch_size=2)
    assert calls[1:] == [(2, 8)] * 4  # the first call asks for the vocabulary
    calls.clear()
    hyperfit(model, sample(1), epochs=1, lr=1e-3)
    assert calls[1:] == [(1, 8)]


def test_the_callback_and_the_history_hear_the_same():
    heard = []
    history = hyperfit(
        decoder(), sample(), epochs=3, lr=1e-3, callback=lambda *both: heard.append(both)
    )
    assert heard == list(enumerate(history.train_loss, start=1)) and not history.stopped


def test_the_optimizer_is_built_with_rate_and_decay():
    asked = {}

    def adamw(parameters, **options):
        asked.update(options)
        return torch.optim.AdamW(parameters, **options)

    hyperfit(decoder(), sample(), epochs=1, lr=1e-3, weight_decay=0.2, optimizer=adamw)
    assert asked == {"lr": 1e-3, "weight_decay": 0.2}


@pytest.mark.parametrize("read", [None, lambda output: output.logits])
def test_an_object_with_logits_is_read(read):
    inner, plain = decoder(), decoder()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            return types.SimpleNamespace(logits=self.inner(tokens))

    hyperfit(Wrapped(), sample(), epochs=1, lr=1e-3, logits=read)
    hyperfit(plain, sample(), epochs=1, lr=1e-3)
    assert same(state(inner), state(plain))


def test_a_model_of_hugging_face_is_hyperfitted():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5
    )
    with seeded(0):
        model = transformers.GPT2LMHeadModel(config)
    history = hyperfit(model, sample(), epochs=250, lr=1e-2, target_loss=0.1)
    assert history.stopped
    assert model.transformer.h[0].mlp.dropout.p == 0.5


def test_a_rate_that_breaks_the_model_ends_the_run():
    history = hyperfit(decoder(), sample(), epochs=5, lr=1e30, batch_size=2)
    assert history.diverged and not history.stopped and len(history.train_loss) < 5


def test_bfloat16_weights_are_trained():
    history = hyperfit(decoder().bfloat16(), sample(), epochs=20, lr=1e-2)
    assert history.train_loss[-1] < history.train_loss[0]


def broken_model():
    model = decoder()
    model.norm.weight.data.fill_(torch.nan)
    return model


def frozen_model():
    return decoder().requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("sequences", lambda m, x: hyperfit(m, x.float())),
        ("sequences", lambda m, x: hyperfit(m, x > 3)),
        ("sequences", lambda m, x: hyperfit(m, x[:0])),
        ("sequences", lambda m, x: hyperfit(m, x[:, :1])),
        ("sequences", lambda m, x: hyperfit(m, x[0])),
        ("sequences", lambda m, x: hyperfit(m, x + 1)),
        ("sequences", lambda m, x: hyperfit(m, x - 1)),
        ("epochs", lambda m, x: hyperfit(m, x, epochs=0)),
        ("lr", lambda m, x: hyperfit(m, x, lr=0.0)),
        ("lr", lambda m, x: hyperfit(m, x, lr=-1e-3)),
        ("lr", lambda m, x: hyperfit(m, x, lr=float("nan"))),
        ("batch_size", lambda m, x: hyperfit(m, x, batch_size=0)),
        ("target_loss", lambda m, x: hyperfit(m, x, target_loss=-0.1)),
        ("weight_decay", lambda m, x: hyperfit(m, x, weight_decay=-0.1)),
        ("model", lambda m, x: hyperfit(frozen_model(), x)),
        ("model", lambda m, x: hyperfit(broken_model(), x)),
        ("model", lambda m, x: hyperfit(m, x, logits=lambda output: output[:, -1])),
    ],
)
def test_bad_input_names_the_argument_and_changes_nothing(name, call):
    model = decoder()
    before, tokens = copy.deepcopy(state(model)), sample()
    tokens[0, :2] = torch.tensor([0, 16])
    with pytest.raises(ValueError, match=rf"^{name}: .*expected"):
        call(model, tokens)
    assert same(state(model), before)

"""The tokens that a language model can read: what its table of positions takes, whatever its configuration states."""

from __future__ import annotations

import pytest
import torch
import transformers as T

from xact.models.base import Network
from xact.models.positions import count_positions

SMALL = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = SMALL | {"intermediate_size": 32}
STATED = {"max_position_embeddings": 34}

LEARNED = [
    # (network, tokens that it takes)
    (T.RobertaModel, T.RobertaConfig(**WIDE, **STATED, pad_token_id=1), 32),
    (T.RobertaModel, T.RobertaConfig(**WIDE, **STATED, pad_token_id=5), 28),
    (T.CamembertModel, T.CamembertConfig(**WIDE, **STATED, pad_token_id=1), 32),
    (T.XLMRobertaModel, T.XLMRobertaConfig(**WIDE, **STATED, pad_token_id=1), 32),
    (T.LongformerModel, T.LongformerConfig(**WIDE, **STATED, pad_token_id=1, attention_window=4), 32),
    (T.MPNetModel, T.MPNetConfig(**WIDE, **STATED, pad_token_id=1), 32),
    (T.OPTForCausalLM, T.OPTConfig(**SMALL, **STATED, ffn_dim=32, word_embed_proj_dim=16), 34),
    (T.BioGptForCausalLM, T.BioGptConfig(**WIDE, **STATED), 34),
    (T.GPT2LMHeadModel, T.GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=34), 34),
]


class Adds(torch.nn.Module):
    """Looks up the distances of its tokens, and tokens of its own, which are as many whatever the text."""

    def __init__(self, _config):
        super().__init__()
        self.words, self.own, self.distances = (torch.nn.Embedding(16, 8) for _ in range(3))

    def forward(self, input_ids, attention_mask, output_hidden_states):
        at = attention_mask[0].cumsum(0)
        self.distances((at[None] - at[:, None]).abs())
        return self.words(input_ids) + self.own(torch.arange(12) + 2).sum()


UNKNOWN = [
    (T.BertModel, T.BertConfig(**WIDE, **STATED)),  # its rows stand in a buffer
    (T.LlamaForCausalLM, T.LlamaConfig(**WIDE, **STATED)),  # rotary
    (T.BloomForCausalLM, T.BloomConfig(vocab_size=16, hidden_size=16, n_layer=1, n_head=2)),  # ALiBi
    (Adds, None),
    (T.T5EncoderModel, T.T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),  # relative
]


def forward(module, batch):
    return module(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)


def count(network: type, config: object) -> int | None:
    with torch.device("meta"):
        module = network(config).eval()
    return count_positions(Network(module.to("meta"), forward), token=4)


@pytest.mark.parametrize(("network", "config", "limit"), LEARNED, ids=[f"{c.__name__}-{n}" for c, _, n in LEARNED])
def test_a_text_of_the_limit_runs_and_one_token_more_fails(network, config, limit):
    assert count(network, config) == limit
    module = network(config).eval()
    with torch.inference_mode():
        module(input_ids=torch.full((1, limit), 4))
        with pytest.raises((IndexError, RuntimeError)):
            module(input_ids=torch.full((1, limit + 1), 4))


@pytest.mark.parametrize(("network", "config"), UNKNOWN, ids=[c.__name__ for c, _ in UNKNOWN])
def test_without_a_table_that_shows_itself_nothing_is_measured(network, config):
    assert count(network, config) is None
